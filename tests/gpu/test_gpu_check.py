"""The sections of `make gpu-check`, each as a test where there is a GPU; and that they run, on a CPU."""

import importlib
import json
import subprocess
import sys

import pytest
import torch
from check import SECTIONS
from conftest import ROOT
from here import Here, Row


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
@pytest.mark.parametrize("section", SECTIONS)
def test_nothing_is_to_be_looked_at(section):
    """Small: whether it is right and waits for nothing; how fast it is, `make gpu-check` says."""
    found = list(importlib.import_module(f"check_{section}").rows(Here("cuda", small=True)))
    assert found
    assert [str(row) for row in found if row.verdict == "LOOK"] == []


@pytest.mark.slow
def test_every_section_runs_small_on_a_cpu(tmp_path):
    """As a script that is typed; what is left out for want of a GPU says so."""
    out = tmp_path / "gpu_check.json"
    command = [sys.executable, "tests/gpu/check.py", "--device", "cpu", "--small", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text())
    assert found["machine"]["device"] == "cpu"
    assert {row["section"] for row in found["rows"]} == {*SECTIONS, "all"}
    assert all(row["verdict"] in ("", "ok") for row in found["rows"])


@pytest.mark.parametrize(
    ("value", "limits", "verdict"),
    [
        (1.0, {}, ""),
        (1.0, {"at_most": 1}, "ok"),
        (1.1, {"at_most": 1}, "LOOK"),
        (1.1, {"at_least": 1}, "ok"),
        (0.9, {"at_least": 1}, "LOOK"),
        (float("nan"), {"at_most": 1}, "LOOK"),
        ("failed", {}, "LOOK"),
        ("torchdistill is not installed", {"at_most": 1}, ""),
    ],
)
def test_verdicts(value, limits, verdict):
    assert Row("what", value, **limits).verdict == verdict


def test_a_kill_keeps_the_rows_that_are_known(tmp_path, monkeypatch):
    """And an error in one section does not keep the next from running."""
    import check

    class Section:
        @staticmethod
        def rows(here):
            yield Row("first", 1.0, at_most=2)
            raise KeyError("gone")

    seen = []

    class Next:
        @staticmethod
        def rows(here):
            seen.extend(json.loads(out.read_text())["rows"])
            yield Row("second", 3.0, at_most=2)

    out = tmp_path / "found.json"
    monkeypatch.setitem(sys.modules, "check_one", Section)
    monkeypatch.setitem(sys.modules, "check_two", Next)
    assert check.run(["one", "two"], "cpu", True, 60, out) == 2
    assert [row["what"] for row in seen] == ["first", "KeyError: 'gone'", "took"]
    late = tmp_path / "late.json"
    assert check.run(["one"], "cpu", True, -1, late) == 1  # its own time, which is over
    assert [row["value"] for row in json.loads(late.read_text())["rows"][:1]] == ["skipped"]
