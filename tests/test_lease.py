"""Two starts of one run: the second is refused while the first lives, and goes on when it is dead."""

import filecmp
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import lightning.pytorch as pl
import pytest
from conftest import ROOT, program, refused
from filelock import SoftFileLease
from test_fit import checkpoint, fit, rows

from distill_dynamics.errors import UserError
from distill_dynamics.files import atomic_write
from distill_dynamics.runs import lease
from distill_dynamics.runs.lease import RUNNING, Lost, hold, holds, release

AUTO = ["--name", "r", "--ckpt_path", "auto"]


@pytest.fixture(autouse=True)
def _quick(no_report, monkeypatch):
    monkeypatch.setattr(lease, "BEAT_S", 0.05)
    monkeypatch.setattr(lease, "DEAD_S", 0.5)
    yield
    release()


BOOT = int(Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", ""), 16)


def elsewhere(run_dir):
    """What is held here, as another machine would see it: one of the same name, started another time."""
    return (run_dir / RUNNING).read_text().replace("\nstart=", "\nstart=9")


def started(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]


def held_by(pid, run_dir):
    """The record of this process, rewritten for another one of this machine."""
    hold(run_dir)
    text = (run_dir / RUNNING).read_text()
    release()
    text = text.replace(f"pid={os.getpid()}\n", f"pid={pid}\n")
    return text.replace(str((BOOT << 64) + int(started(os.getpid()))), str((BOOT << 64) + int(started(pid))))


@pytest.fixture
def child():
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


def test_a_run_is_held_until_it_is_released(tmp_path):
    hold(tmp_path)
    assert (tmp_path / RUNNING).exists()
    release()
    assert list(tmp_path.iterdir()) == []
    hold(tmp_path)
    hold(tmp_path)  # a process does not shut itself out


def touched(path, times):
    def beat():
        for _ in range(times):
            time.sleep(0.05)
            os.utime(path)

    threading.Thread(target=beat, daemon=True).start()


def test_one_that_beats_on_another_machine_is_alive(tmp_path):
    hold(tmp_path)
    text = elsewhere(tmp_path)
    release()
    (tmp_path / RUNNING).write_text(text)
    touched(tmp_path / RUNNING, 40)
    with pytest.raises(UserError, match=f"{tmp_path} is under way, in process {os.getpid()} on "):
        hold(tmp_path)
    assert (tmp_path / RUNNING).read_text() == text


@pytest.mark.parametrize("record", ["this", "cut", "empty", "another duration"])
def test_one_that_beats_no_more_is_dead(tmp_path, capsys, record):
    hold(tmp_path)
    text = elsewhere(tmp_path)
    release()
    (tmp_path / RUNNING).write_text(
        {
            "this": text,
            "cut": text[:10],
            "empty": "",
            "another duration": text.replace("duration=0.5", "duration=7"),
        }[record]
    )
    began = time.monotonic()
    hold(tmp_path)
    assert 0.4 < time.monotonic() - began < 10
    assert "looking for" in capsys.readouterr().err
    assert f"pid={os.getpid()}\n" in (tmp_path / RUNNING).read_text()


@pytest.mark.parametrize("how", ["ended", "zombie", "another of its number"])
def test_a_dead_process_of_this_machine_is_known_at_once(tmp_path, monkeypatch, child, how):
    monkeypatch.setattr(lease, "DEAD_S", 60)
    text = held_by(child.pid, tmp_path)
    (tmp_path / RUNNING).write_text(text)
    with pytest.raises(UserError, match=f"under way, in process {child.pid} on"):
        hold(tmp_path)
    if how == "another of its number":
        number = (BOOT << 64) + int(started(child.pid))
        (tmp_path / RUNNING).write_text(text.replace(str(number), str((BOOT << 64) + 1)))
    else:
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    if how == "ended":
        child.wait()
    began = time.monotonic()
    hold(tmp_path)
    assert time.monotonic() - began < 8


def test_one_that_stands_still_loses_the_run_after_its_time(tmp_path, child):
    (tmp_path / RUNNING).write_text(held_by(child.pid, tmp_path))
    child.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)
    began = time.monotonic()
    hold(tmp_path)
    assert time.monotonic() - began > 0.4


STARTER = """
import sys, time, types
from pathlib import Path
package = sys.modules["distill_dynamics"] = types.ModuleType("distill_dynamics")  # without torch
package.__path__ = [sys.argv[1]]
from distill_dynamics.runs import lease
from distill_dynamics.errors import UserError
lease.BEAT_S, lease.DEAD_S = 0.05, 0.5
for folder in sys.stdin:
    folder = Path(folder.strip())
    try:
        lease.hold(folder)
        print("held", flush=True)
    except UserError:
        print("refused", flush=True)
    sys.stdin.readline()
    lease.release()
    print("over", flush=True)
"""


@pytest.mark.parametrize("rounds", [8, pytest.param(200, marks=pytest.mark.slow)])
def test_of_four_starters_on_a_stale_lease_one_gets_the_run(tmp_path, rounds, child):
    hold(tmp_path)
    others = [elsewhere(tmp_path), ""]
    release()
    dead = held_by(child.pid, tmp_path)
    child.kill()
    child.wait()
    starters = [
        subprocess.Popen(
            [sys.executable, "-c", STARTER, ROOT / "distill_dynamics"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for _ in range(4)
    ]

    def say(word):
        for starter in starters:
            starter.stdin.write(f"{word}\n")
            starter.stdin.flush()
        return [starter.stdout.readline().strip() for starter in starters]

    for number in range(rounds):
        run_dir = tmp_path / str(number)
        run_dir.mkdir()
        (run_dir / RUNNING).write_text(dead if number % 4 else others[number // 4 % len(others)])
        assert sorted(say(run_dir)) == ["held", "refused", "refused", "refused"]
        assert (run_dir / RUNNING).exists()
        say("release")
        assert not (run_dir / RUNNING).exists()
    for starter in starters:
        starter.stdin.close()
        starter.wait()


def taken_over(run_dir):
    """Another takes what this process holds, as while that stood still."""
    other = SoftFileLease(run_dir / RUNNING, lease_duration=0.5)
    (run_dir / RUNNING).unlink()
    other.acquire(timeout=1)
    return other


def test_who_lost_a_run_writes_nothing_and_leaves_its_successor_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "PATIENCE_S", 0.2)
    (tmp_path / "metrics.csv").write_text("old")
    hold(tmp_path)

    def lose_it():
        with atomic_write(tmp_path / "metrics.csv") as partial:
            partial.write_text("new")
            successors.append(taken_over(tmp_path))

    successors = []
    with pytest.raises(Lost, match=f"taken over while this process stood still, by process {os.getpid()}"):
        lose_it()
    with pytest.raises(Lost), atomic_write(tmp_path / "another"):
        pytest.fail("begun")
    with atomic_write(tmp_path.parent / "elsewhere") as partial:
        partial.write_text("of no run")
    assert not holds(tmp_path)
    release()
    assert sorted(path.name for path in tmp_path.iterdir()) == [RUNNING, "metrics.csv"]
    assert (tmp_path / "metrics.csv").read_text() == "old"
    successors[0].release()


def test_a_lease_that_is_looked_at_is_not_lost(tmp_path):
    hold(tmp_path)
    (tmp_path / RUNNING).rename(tmp_path / "aside")
    threading.Timer(0.3, lambda: (tmp_path / "aside").rename(tmp_path / RUNNING)).start()
    lease.check()
    assert holds(tmp_path)


@pytest.mark.parametrize("how", ["deleted", "moved"])
def test_a_run_directory_that_is_gone_is_not_made_again(tmp_path, monkeypatch, how):
    monkeypatch.setattr(lease, "PATIENCE_S", 0.2)
    run_dir = tmp_path / "r"
    run_dir.mkdir()
    hold(run_dir)

    def lose_it():
        with atomic_write(run_dir / "checkpoints" / "last.ckpt") as partial:
            if how == "deleted":
                shutil.rmtree(run_dir)
            else:
                run_dir.rename(tmp_path / "elsewhere")
            partial.write_text("x")

    with pytest.raises(Lost, match=f"{run_dir} is gone"):
        lose_it()
    with pytest.raises(Lost), atomic_write(run_dir / "run.json"):
        pytest.fail("begun")
    assert not run_dir.exists()


def training(experiment, tmp_path, **environment):
    """A training in a process of its own, in its first epoch."""
    slow = {"class_path": "test_restarts.Slow", "init_args": {"seconds": 1.0}}
    words = ["--config", experiment(), *AUTO, "--trainer.callbacks", json.dumps([slow])]
    command = program("fit", *words, **environment)
    process = subprocess.Popen(**command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while process.poll() is None and not (tmp_path / "runs" / "r" / "training").exists():
        time.sleep(0.02)
    return process, tmp_path / "runs" / "r"


@pytest.mark.slow
def test_a_process_that_lost_its_run_and_wakes_in_training_writes_nothing(experiment, tmp_path):
    process, run_dir = training(experiment, tmp_path)
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
    hold(run_dir)
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")}
    (run_dir / "of_the_successor").touch()
    process.send_signal(signal.SIGCONT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 2
    assert said.splitlines(keepends=True)[-1] == (
        f"error: {run_dir} was taken over while this process stood still, by process {os.getpid()} on "
        f"{platform.node()}: this process stops and writes nothing more\n"
    )
    after = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")}
    for name in ("of_the_successor", RUNNING, "training"):  # the last is of the callback that slows it down
        after.pop(run_dir / name), before.pop(run_dir / name, None)
    assert after == before
    assert holds(run_dir)


class Loses(pl.Callback):
    """In the second step the run is taken over by another, or its directory is deleted."""

    def __init__(self, how: str):
        self.how = how

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        run_dir = Path(trainer.default_root_dir)
        if self.how == "deleted" and batch_idx == 1:
            shutil.rmtree(run_dir)
        elif batch_idx == 1:
            shutil.copytree(run_dir, run_dir.parent / "before", ignore=shutil.ignore_patterns(RUNNING))
            self.other = taken_over(run_dir)
        time.sleep(lease.BEAT_S)


@pytest.mark.parametrize(
    ("how", "line"), [("deleted", "is gone, deleted or moved"), ("taken", "taken over while")]
)
def test_a_training_that_lost_its_run_ends_at_the_next_step(
    experiment, tmp_path, capsys, monkeypatch, how, line
):
    monkeypatch.setattr(lease, "PATIENCE_S", 0.2)
    loses = {"class_path": "test_lease.Loses", "init_args": {"how": how}}
    words = [
        "--config",
        experiment(wandb__mode="disabled"),
        *AUTO,
        "--trainer.callbacks",
        json.dumps([loses]),
    ]
    # Before it, what is thought of a teacher that is drawn at random.
    *_, said = refused(capsys, "fit", *words).splitlines()
    assert said.startswith(f"error: {tmp_path / 'runs' / 'r'} ")
    assert line in said
    if how == "deleted":
        assert not (tmp_path / "runs" / "r").exists()
        return
    (tmp_path / "runs" / "r" / RUNNING).unlink()
    found = filecmp.dircmp(tmp_path / "runs" / "r", tmp_path / "runs" / "before")
    assert not found.left_only + found.right_only + found.diff_files


@pytest.mark.slow
def test_a_run_directory_deleted_under_a_training_ends_it(experiment, tmp_path):
    process, run_dir = training(experiment, tmp_path, WANDB_MODE="offline")
    shutil.rmtree(run_dir)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 2
    assert said.splitlines()[-1].startswith(f"error: {run_dir} is gone, deleted or moved")
    assert not run_dir.exists()


def test_a_second_start_is_refused_and_leaves_the_first_alone(experiment, tmp_path, capsys):
    first, run_dir = training(experiment, tmp_path)
    in_flight = run_dir / "checkpoints" / ".last.ckpt.1.partial"
    in_flight.parent.mkdir(exist_ok=True)
    in_flight.touch()
    error = refused(capsys, "fit", "--config", experiment(), *AUTO)
    assert f"is under way, in process {first.pid} on " in error
    assert in_flight.exists()
    assert first.poll() is None
    first.send_signal(signal.SIGKILL)
    first.wait()
    fit(experiment(), *AUTO)  # at once
    assert not in_flight.exists()
    assert not (run_dir / RUNNING).exists()
    assert [row["epoch"] for row in rows(run_dir)] == ["0", "1", "2"]
    assert checkpoint(run_dir)["epoch"] == 1
