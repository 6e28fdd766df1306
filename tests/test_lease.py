"""Two starts of one run: the second is refused while the first lives, and goes on when it is dead."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT
from test_fit import checkpoint, fit, rows

from distill_dynamics import lease
from distill_dynamics.errors import UserError
from distill_dynamics.lease import RUNNING, hold, release

AUTO = ["--name", "r", "--ckpt_path", "auto"]


@pytest.fixture(autouse=True)
def _quick(no_report, monkeypatch):
    monkeypatch.setattr(lease, "BEAT_S", 0.05)
    monkeypatch.setattr(lease, "DEAD_S", 0.5)
    yield
    release()


def elsewhere(run_dir):
    """What is held here, as another machine would see it."""
    content = json.loads((run_dir / RUNNING).read_text())
    return json.dumps(content | {"machine": "another", "host": "node7"})


def test_a_run_is_held_until_it_is_released(tmp_path):
    hold(tmp_path)
    assert (tmp_path / RUNNING).exists()
    release()
    assert list(tmp_path.iterdir()) == []
    hold(tmp_path)
    hold(tmp_path)  # a process does not shut itself out


def test_one_that_beats_on_another_machine_is_alive(tmp_path):
    hold(tmp_path)
    (tmp_path / RUNNING).write_text(elsewhere(tmp_path))
    with pytest.raises(UserError, match=f"{tmp_path} is under way, in process {os.getpid()} on node7"):
        hold(tmp_path)
    assert (tmp_path / RUNNING).exists()


@pytest.mark.parametrize("cut", [False, True])
def test_one_that_beats_no_more_is_dead(tmp_path, capsys, cut):
    hold(tmp_path)
    text = elsewhere(tmp_path)
    release()
    (tmp_path / RUNNING).write_text(text[:10] if cut else text)
    began = time.monotonic()
    hold(tmp_path)
    assert 0.4 < time.monotonic() - began < 5
    assert "looking for" in capsys.readouterr().err
    assert json.loads((tmp_path / RUNNING).read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("how", ["ended", "zombie", "another of its number"])
def test_a_dead_process_of_this_machine_is_known_at_once(tmp_path, monkeypatch, how):
    monkeypatch.setattr(lease, "DEAD_S", 60)
    child = subprocess.Popen(["sleep", "60"])
    hold(tmp_path)
    content = json.loads((tmp_path / RUNNING).read_text()) | {
        "pid": child.pid,
        "started": lease._started(child.pid),
    }
    release()
    (tmp_path / RUNNING).write_text(json.dumps(content))
    with pytest.raises(UserError, match="under way"):
        hold(tmp_path)
    if how == "another of its number":
        (tmp_path / RUNNING).write_text(json.dumps(content | {"started": "1"}))
    else:
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    if how == "ended":
        child.wait()
    began = time.monotonic()
    hold(tmp_path)
    assert time.monotonic() - began < 5
    child.kill()
    child.wait()


def test_a_second_start_is_refused_and_leaves_the_first_alone(experiment, tmp_path, capsys):
    slow = {"class_path": "test_restarts.Slow", "init_args": {"seconds": 1.0}}
    run_dir = tmp_path / "runs" / "r"

    def start():
        command = [sys.executable, "-m", "distill_dynamics", "fit", "--config", experiment()]
        process = subprocess.Popen(
            [*command, *AUTO, "--trainer.callbacks", json.dumps([slow])],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT / "tests"), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
        )
        while process.poll() is None and not (run_dir / "training").exists():
            time.sleep(0.02)
        return process

    first = start()
    in_flight = run_dir / "checkpoints" / ".last.ckpt.1.partial"
    in_flight.parent.mkdir(exist_ok=True)
    in_flight.touch()
    with pytest.raises(SystemExit) as stop:
        fit(experiment(), *AUTO)
    assert stop.value.code == 2
    assert f"is under way, in process {first.pid} on " in capsys.readouterr().err
    assert in_flight.exists()
    assert first.poll() is None
    first.send_signal(signal.SIGKILL)
    first.wait()
    fit(experiment(), *AUTO)  # at once
    assert not in_flight.exists()
    assert not (run_dir / RUNNING).exists()
    assert [row["epoch"] for row in rows(run_dir)] == ["0", "1", "2"]
    assert checkpoint(run_dir)["epoch"] == 1
