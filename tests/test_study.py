"""The study's runner: which runs it makes, in which order, and what it keeps of them."""

import importlib.util
import sys
from collections import Counter

import pytest
from conftest import ROOT


@pytest.fixture
def study(monkeypatch, tmp_path):
    spec = importlib.util.spec_from_file_location("study_run", ROOT / "notebooks" / "study" / "run.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "study_run", module)
    spec.loader.exec_module(module)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "HERE", tmp_path / "study")
    monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    return module


def test_every_row_is_run_on_its_seeds_and_claims_come_first_seed_by_seed(study):
    made = list(study.runs([*study.CLAIMS, *study.OTHERS]))
    seeds = Counter(run.row for run in made)
    assert seeds == {**dict.fromkeys(study.CLAIMS, 5), **dict.fromkeys(study.OTHERS, 3)}
    assert len(set(made)) == len(made)
    assert {(run.row, run.seed) for run in made[: len(study.CLAIMS)]} == {(row, 0) for row in study.CLAIMS}

    configs = {path.stem for path in (ROOT / "configs" / "fashion_mnist").glob("*.yaml")}
    rows = {name for name in configs if name not in ("base", "cache") and not name.startswith("teacher")}
    assert {row.removesuffix("_online") for row in seeds} == rows


def fake_commands(study, monkeypatch, fails=()):
    """Commands that leave the files of a run at once; what they were."""
    asked = []

    def command(log, verb, configs, *options):
        asked.append((log, verb, *map(str, options)))
        if log in fails:
            raise study.Failed(f"{log}: no space left")
        folder = study.RUNS / log
        if verb == "fit":
            folder.mkdir(parents=True)
            for file in ("config.yaml", "run.json", "metrics.csv"):
                (folder / file).write_text(f"{file} of {log}")
        if verb == "analyze":
            out = options[options.index("--out") + 1]
            out.mkdir(parents=True)
            for file in ("curves.csv", "table.csv", "report.html"):
                (out / file).write_text(file)

    monkeypatch.setattr(study, "command", command)
    monkeypatch.setattr(study, "make_teacher", lambda name: None)
    return asked


def run(study, monkeypatch, *args):
    monkeypatch.setattr(sys, "argv", ["run.py", *args])
    with pytest.raises(SystemExit) as ended:
        study.main()
    return ended.value.code


def test_what_is_kept_is_not_made_again_and_a_failure_stops_no_other(study, monkeypatch, capsys, tmp_path):
    asked = fake_commands(study, monkeypatch, fails=["softkd-1"])
    assert run(study, monkeypatch, "--only", "softkd", "none", "--workers", "1") == 1
    assert "softkd-1: no space left" in capsys.readouterr().out
    assert len([words for words in asked if words[1] == "cache-teacher"]) == 1
    fits = {log: words for log, verb, *words in asked if verb == "fit"}
    assert len(fits) == 10
    assert "--model.teacher_cache" in fits["softkd-0"]
    assert "--model.teacher_cache" not in fits["none-0"]

    kept = tmp_path / "results"
    assert {path.name for path in kept.iterdir()} == set(fits) - {"softkd-1"}
    files = {str(path.relative_to(kept / "softkd-2")) for path in (kept / "softkd-2").rglob("*.*")}
    assert files == {"config.yaml", "run.json", "metrics.csv", "evolution/curves.csv", "evolution/table.csv"}
    assert (kept / "softkd-2" / "metrics.csv").read_text() == "metrics.csv of softkd-2"

    again = fake_commands(study, monkeypatch)
    assert run(study, monkeypatch, "--only", "softkd", "none") == 0
    assert {log for log, verb, *_ in again if verb == "fit"} == {"softkd-1"}
    assert "9 runs are there, 1 to make" in capsys.readouterr().out
