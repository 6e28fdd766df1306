"""`fit --baselines`: the runs, what they share, what is refused, and the numbers of the page."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import yaml
from conftest import VIT, program, refused, tiny_config
from scipy import stats
from test_fit import Interrupted, assert_same_run, rows

from distill_dynamics import Distiller
from distill_dynamics.cli import comparison
from distill_dynamics.cli.arms import Settings, arms_of
from distill_dynamics.cli.child import Children
from distill_dynamics.cli.main import main
from distill_dynamics.dynamics import Profile
from distill_dynamics.report import page

ARMS = ("c", "c-softkd", "c-alone")


@pytest.fixture(scope="module", autouse=True)
def one_process():
    """Each run of a comparison is made in this process, whose imports take most of a tiny one's time."""

    def run(self, words):
        try:
            main([*words])
        except SystemExit as stop:
            return stop.code
        except Interrupted:
            return 1
        return 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Children, "run", run)
        patch.setattr("distill_dynamics.cli.fit.end", lambda *args: None)  # what it prints and its report
        patch.setattr(page, "gallery", lambda study: [])
        yield


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A comparison on two seeds, without its page yet, and the pixels of each step of each run."""
    folder = tmp_path_factory.mktemp("compared")
    config = tiny_config(
        trainer__max_epochs=1,
        trainer__limit_train_batches=4,
        trainer__limit_val_batches=1.0,
        trainer__callbacks=[
            {"class_path": f"distill_dynamics.callbacks.{name}"} for name in ("EMA", "GradientConflict")
        ],
        model__scheduler=None,
        model__optimizer={"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.02}},
        seed_everything=3,
    )
    (folder / "c.yaml").write_text(yaml.safe_dump({**config, "runs_dir": str(folder)}))
    seen: dict[str, list] = {}
    step = Distiller.training_step

    def watched(self, batch, batch_idx):
        name = os.path.basename(self.trainer.default_root_dir)
        seen.setdefault(name, []).append((batch[0].double().sum().item(), batch[1].tolist()))
        return step(self, batch, batch_idx)

    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Distiller, "training_step", watched)
        patch.setattr(comparison, "write_report", lambda *args: None)
        for variable in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
            patch.setenv(variable, "0")
        main(["fit", "--config", str(folder / "c.yaml"), "--baselines", "--seeds", "2"])
    return folder, seen


def test_all_but_the_method_is_equal(compared):
    folder, seen = compared
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {
        f"{arm}-seed{seed}" for arm in ARMS for seed in (3, 4)
    }
    firsts, terms = [], []
    for seed in (3, 4):
        runs = [folder / f"{arm}-seed{seed}" for arm in ARMS]
        pixels = [seen[run.name] for run in runs]
        assert pixels[0] == pixels[1] == pixels[2]
        assert len(pixels[0]) == 4
        first = [Profile.load(run / "dynamics" / "student_epoch_0000.npz") for run in runs]
        for other in first[1:]:
            np.testing.assert_array_equal(first[0].entropy_images, other.entropy_images)
        firsts.append(first[0].entropy.tolist())
        terms.append([{name for name in rows(run)[-1] if name.startswith("train/loss_")} for run in runs])
        starts = [json.loads((run / "run.json").read_text())["starts"] for run in runs]
        assert [[start["seed"] for start in of_run] for of_run in starts] == [[seed]] * 3
        settings = [yaml.safe_load((run / "config.yaml").read_text()) for run in runs]
        assert [one["wandb"]["group"] for one in settings] == ["c", "c-softkd", "c-alone"]
        for one in settings:
            for key in ("model", "wandb", "name"):
                del one[key]
            assert one == settings[0]
    assert firsts[0] != firsts[1]
    assert seen["c-seed3"] != seen["c-seed4"]
    ours = {"train/loss_ce", "train/loss_kd", "train/loss_projector"}
    assert terms == [[ours, ours - {"train/loss_projector"}, {"train/loss_ce"}]] * 2
    assert "teacher/acc1" not in rows(folder / "c-alone-seed3")[0]


def test_page_and_table_have_the_gains_of_the_runs(compared, capsys):
    folder, _ = compared
    capsys.readouterr()
    main(["fit", "--config", str(folder / "c.yaml"), "--baselines"])  # nothing is left to train
    printed = capsys.readouterr().out
    assert "3 of them trained already" in printed
    top1 = {
        arm: np.array(
            [max(float(row["val/acc1"]) for row in rows(folder / f"{arm}-seed{seed}")[1:]) for seed in (3, 4)]
        )
        for arm in ARMS
    }
    html = re.sub(r"<[^>]+>", " ", (folder / "c-comparison.html").read_text())
    html = " ".join(html.replace("&#160;", " ").split())
    table = {line.split("  ")[1].strip(): line for line in printed.splitlines() if " ± " in line}
    names = dict(zip(ARMS, ("ProjectorKD L 1", "SoftKD", "no distillation"), strict=True))
    assert table.keys() >= {*names.values()}
    assert max(map(len, printed.partition("method")[2].splitlines()[:4])) <= 80
    for one, other in (("c", "c-softkd"), ("c", "c-alone"), ("c-softkd", "c-alone"), ("c-alone", "c-softkd")):
        pairs = top1[one] - top1[other]
        mean, half = pairs.mean(), stats.sem(pairs) * stats.t.ppf(0.975, 1)
        assert half > 0.01, "a test of intervals needs a spread"
        assert f"{top1[one].mean():.2f} ± {top1[one].std(ddof=1):.2f}" in table[names[one]]
        assert f"{mean:+.2f} ± {half:.2f}" in table[names[one]]
        row = f"{names[one]} {names[other]} {mean:+.2f} {mean - half:+.2f} to {mean + half:+.2f}"
        assert row in html


def test_a_comparison_that_was_stopped_goes_on_where_it_was(experiment, tmp_path, monkeypatch, capsys):
    changes = {"trainer__max_epochs": 2, "probe__every_n_epochs": 2, "model__terms": {}}
    config, step = experiment(**changes), Distiller.training_step
    words = ["fit", "--config", str(config), "--baselines"]

    def interrupt(self, batch, batch_idx):
        if self.teacher is None and self.current_epoch == 1 and batch_idx == 1:
            raise Interrupted
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(Distiller, "training_step", interrupt)
        assert "stopped at 2 of 2: no distillation, seed 1; the same" in refused(capsys, *words, status=1)
    runs = tmp_path / "runs"
    assert not (runs / "tiny-comparison.html").exists()
    torch.manual_seed(987)
    main(words)
    printed = capsys.readouterr().out
    assert "SoftKD is left out: the config is that itself" in printed
    assert "one seed: differences stand without a verdict" in printed
    starts = {name: json.loads((runs / name / "run.json").read_text())["starts"] for name in os.listdir(runs)
              if not name.endswith("html")}  # fmt: skip
    assert {name: [s["from_epoch"] for s in each] for name, each in starts.items()} == {
        "tiny-seed1": [0],
        "tiny-alone-seed1": [0, 1],
    }
    (command,) = {line.strip() for line in printed.splitlines() if "--name tiny-alone-seed1" in line}
    given = command.partition(" fit ")[2].replace("tiny-alone-seed1", "whole").split()
    main(["fit", *given])
    assert_same_run(runs / "whole", runs / "tiny-alone-seed1")

    # With other settings it is refused, and nothing is touched.
    before = {path: path.stat().st_mtime_ns for path in runs.rglob("*")}
    line = refused(capsys, *words, "--model.label_smoothing", "0.2")
    assert re.search(r"tiny-seed1 was made with model.label_smoothing 0.1, and here it is 0.2", line)
    assert {path: path.stat().st_mtime_ns for path in runs.rglob("*")} == before


REFUSED = {
    "--seeds: expected a whole number above 0, not '0'": ["--seeds", "0"],
    "--seeds: expected a whole number above 0, not 'a'": ["--seeds=a"],
    "--seeds: expected a whole number above 0, not ''": ["--seeds"],
    "--baselines takes no value": ["--baselines=yes"],
    "--print_config prints one configuration": ["--print_config"],
    "leave it out": ["--ckpt_path", "last"],
}


@pytest.mark.parametrize(("message", "words"), REFUSED.items(), ids=REFUSED)
def test_what_is_refused_by_the_words_alone(capsys, message, words):
    line = refused(capsys, "fit", "--config", "x.yaml", "--baselines", *words)
    assert message in line
    assert line.count("\n") == 1


def test_several_processes_of_a_launcher_are_refused(capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "a launcher has started 2" in refused(capsys, "fit", "--config", "x.yaml", "--seeds", "2")


def test_a_sweeps_run_is_one(capsys, monkeypatch):
    """All runs of a comparison would be written to it."""
    monkeypatch.setenv("WANDB_SWEEP_ID", "abc")
    assert "sweep's run is one run" in refused(capsys, "fit", "--config", "x.yaml", "--baselines")


HEADLESS = {**VIT, "depth": 2, "num_classes": 0}


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("seeds are from 0 to 4294967295", ["--seed_everything", "4294967294", "--seeds", "3"]),
        ("seeds are counted from a number", ["--seed_everything", "true"]),
        ("trainer.limit_val_batches is 0", ["--trainer.limit_val_batches", "0"]),
        (
            "data: UnlabelledFolder has no validation images here, and runs are compared by them",
            ["--data", json.dumps({"class_path": "UnlabelledFolder", "init_args": {"data_dir": "x"}})],
        ),
        ("the student has no classes", ["--model.student.timm_kwargs", json.dumps(HEADLESS)]),
        (
            "there is none to compare with: SoftKD is left out: the config has no teacher; no distill",
            ["--model.teacher", "null", "--model.terms", "null"],
        ),
        ("is of no run of that name", []),
    ],
)
def test_what_is_refused_before_anything_is_trained(experiment, tmp_path, capsys, message, words):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "tiny-comparison.html").touch()
    line = refused(capsys, "fit", "--config", experiment(), "--baselines", *words)
    assert message in line
    assert line.count("\n") == 1
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["tiny-comparison.html"]


def test_arms(experiment, tmp_path):
    """By what differs in the config, the methods that are trained and the options that make them."""
    config = str(experiment(model__teacher_precision="32-true"))
    settings = Settings(args=["fit", "--config", config])

    def arms(*words):
        given = ["fit", "--config", config, *words]
        settings.config = settings.parser.parse_args(given)
        found, left_out = arms_of(settings, given, True)
        return {arm.method: " ".join(arm.options) for arm in found}, left_out

    assert [arm.method for arm in arms_of(settings, ["fit", "--config", config], False)[0]] == ["ProjectorKD"]
    found, left_out = arms()
    assert [*found] == ["ProjectorKD", "SoftKD", "no distillation"]
    assert "--model.teacher_precision null" in found["no distillation"]
    assert "alpha" not in found["SoftKD"]
    assert left_out == []

    dkd = {"dkd": {"loss": "distill_dynamics.losses.DKD", "weight": 1.0}}
    found, _ = arms("--model.alpha", "0", "--model.terms", json.dumps(dkd))
    assert [*found] == ["DKD without SoftKD", "SoftKD", "no distillation"]
    assert "--model.alpha null" in found["SoftKD"]

    kd = {"kd": {"loss": "distill_dynamics.losses.SoftKD", "weight": 0.9}}
    found, left_out = arms("--model.alpha", "0.9", "--model.terms", json.dumps(kd))
    assert [*found] == ["SoftKD", "no distillation"]
    assert left_out == ["SoftKD is left out: the config is that itself"]

    others = {**VIT, "depth": 3, "num_classes": 7}
    words = ["--model.alpha", "0", "--model.teacher.timm_kwargs", json.dumps(others)]
    found, left_out = arms(*words)
    assert [*found] == ["ProjectorKD without SoftKD", "no distillation"]
    assert left_out == ["SoftKD is left out: the teacher has 7 classes, and the student 10"]


def test_a_signal_to_stop_goes_to_the_run(tmp_path, monkeypatch):
    """In a process of its own, which stands for `fit`: it ends as one that is preempted does."""
    script = tmp_path / "python"
    script.write_text(f"#!/bin/sh\ntrap 'exit 75' TERM\ntouch {tmp_path}/runs\nwhile :; do sleep 0.1; done\n")
    script.chmod(0o755)
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import sys; sys.executable = {str(script)!r}\n"
            "from distill_dynamics.cli.child import Children\n"
            "with Children() as children:\n    status = children.run(['fit'])\n"
            "print(status, children.asked)",
        ],
        stdout=subprocess.PIPE,
        text=True,
        env=program()["env"] | {"PYTHONPATH": program()["cwd"].as_posix()},
    )
    while not (tmp_path / "runs").exists():
        time.sleep(0.05)
    parent.send_signal(signal.SIGTERM)
    assert parent.communicate(timeout=60)[0].split() == ["75", str(int(signal.SIGTERM))]


@pytest.mark.slow
def test_processes_that_are_preempted_are_continued_bit_for_bit(experiment, tmp_path):
    """Each run is asked to make room once; the same command brings it to the end of an uninterrupted one."""
    stop = {"class_path": "test_restarts.Signalled", "init_args": {"when": "batch", "epoch": 1, "batch": 1}}
    changes = {"model__terms": {}, "probe__every_n_epochs": 2}
    command = program("fit", "--config", experiment(**changes, trainer__callbacks=[stop]), "--baselines")
    ends = [subprocess.run(**command, capture_output=True, timeout=600) for _ in range(3)]
    assert [end.returncode for end in ends] == [75, 75, 0]
    assert "stopped at 1 of 2: SoftKD, seed 1; the same command goes on there" in ends[0].stderr
    runs = tmp_path / "runs"
    assert "<html" in (runs / "tiny-comparison.html").read_text()
    plain = experiment(**changes)
    for name, options in {"tiny-seed1": [], "tiny-alone-seed1": ["--model.teacher", "null"]}.items():
        starts = json.loads((runs / name / "run.json").read_text())["starts"]
        assert [start["from_epoch"] for start in starts] == [0, 1]
        main(["fit", "--config", str(plain), "--name", f"whole-{name}", *options])
        assert_same_run(runs / f"whole-{name}", runs / name)
