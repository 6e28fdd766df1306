"""Runs that are stopped, killed and continued, against runs that are not."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import lightning.pytorch as pl
import pytest
import safetensors
import torch
import yaml
from conftest import program, refused, tiny_config
from test_fit import assert_same, assert_same_run, checkpoint, fit, rows

from distill_dynamics.cluster.preemption import SAME_SIGNAL_S
from distill_dynamics.dynamics import Profile
from distill_dynamics.dynamics.signature import evolution
from distill_dynamics.files import atomic_write
from distill_dynamics.report.fit_run import read_fit
from distill_dynamics.train.checkpoints import newest_intact

EMA = {"class_path": "distill_dynamics.callbacks.EMA", "init_args": {"decay": 0.8}}
RECIPE = {
    "trainer__limit_train_batches": 8,
    "trainer__accumulate_grad_batches": 2,
    "trainer__max_epochs": 3,
    "data__init_args__repeats": 3,
    "data__init_args__augment": {"re_prob": 0.5, "scale": [0.5, 1.0]},
    "checkpoint_every_n_epochs": 2,
}
"""All that has a state or draws numbers: projector, average, accumulation, repeats, erasing, dropout."""

AUTO = ["--name", "r", "--ckpt_path", "auto"]


class Signalled(pl.Callback):
    """Sends this process a signal at a place in training, the same every time."""

    def __init__(self, when: str, epoch: int = 0, batch: int = 0, number: int = 15, rank: int = 0):
        self.when, self.epoch, self.batch, self.number, self.rank = when, epoch, batch, number, rank

    def send(self, trainer, when, batch=0):
        position = trainer.current_epoch, batch, trainer.global_rank
        if when == self.when and position == (self.epoch, self.batch, self.rank):
            os.kill(os.getpid(), self.number)

    def on_train_start(self, trainer, module):
        self.send(trainer, "start")

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.send(trainer, "batch", batch_idx)

    def on_validation_start(self, trainer, module):
        self.send(trainer, "validation")


class Slow(pl.Callback):
    """Gives whoever sends a signal the time to, and tells him in run.json's folder that training is on."""

    def __init__(self, seconds: float):
        self.seconds = seconds

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.is_global_zero:
            Path(trainer.default_root_dir, "training").touch()
        time.sleep(self.seconds)


class EndsSlowly(pl.Callback):
    """Gives whoever sends a signal the time to when the interpreter has put down its handlers."""

    def __init__(self, file: str):
        self.file = file

    def on_train_start(self, trainer, module):
        global _kept_to_the_end
        _kept_to_the_end = GoesSlowly(self.file)


class GoesSlowly:
    def __init__(self, file: str):
        self.file = file

    def __del__(self, touch=os.mkdir, sleep=time.sleep):  # nothing else is left by then
        touch(self.file)
        sleep(3)


class Interrupted(Exception):
    pass


class Interrupts(pl.Callback):
    """Ends the run as a crash would, in its first epoch."""

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if batch_idx == 3:
            raise Interrupted


@pytest.fixture(autouse=True)
def _this_process_goes_on(no_report):
    """One that is preempted stays deaf to its end."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of RECIPE that nothing interrupts, and a way to write configs of runs beside it."""
    folder = tmp_path_factory.mktemp("restarts")

    def write(*callbacks, average=True, **changes) -> Path:
        path = folder / "tiny.yaml"
        config = tiny_config(**RECIPE | changes, trainer__callbacks=[*([EMA] * average), *callbacks])
        path.write_text(yaml.safe_dump({**config, "runs_dir": str(folder)}))
        return path

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("distill_dynamics.cli.fit_summary.write_report", lambda *args: None)
        torch.set_num_threads(1)
        fit(write(), "--name", "whole")
    yield folder / "whole", write
    assert not list(folder.rglob("*.partial"))


@pytest.fixture
def run_dir(whole):
    """Of the run "r", beside the one that nothing interrupts."""
    yield whole[0].with_name("r")
    shutil.rmtree(whole[0].with_name("r"), ignore_errors=True)


def signalled(**settings) -> dict:
    return {"class_path": "test_restarts.Signalled", "init_args": settings}


def preempted(config, *args):
    with pytest.raises(SystemExit) as stop:
        fit(config, *args)
    assert stop.value.code == 75


def starts(run_dir):
    return json.loads((run_dir / "run.json").read_text())["starts"]


def assert_as_uninterrupted(whole, run_dir):
    assert_same_run(whole, run_dir)
    assert_same(*(checkpoint(run)["callbacks"]["EMA"] for run in (whole, run_dir)))
    names = [sorted(path.name for path in (run / "checkpoints").iterdir()) for run in (whole, run_dir)]
    assert names[0] == names[1]
    assert starts(run_dir)[-1]["ended"] == {"epoch": 3, "error": None}


def test_a_run_preempted_in_the_middle_of_epochs_ends_as_an_uninterrupted_one(whole, run_dir, capsys):
    uninterrupted, write = whole
    preempted(write(signalled(when="batch", batch=2)), *AUTO)
    *_, line = (
        capsys.readouterr().err.strip().splitlines()
    )  # before it, what is told of a teacher drawn at random
    assert "in epoch 1 after step 2" in line  # 2 batches a step
    assert f"--config {run_dir}/config.yaml --ckpt_path auto" in line
    assert f"{run_dir}/checkpoints/preempted.ckpt holds it" in line
    assert checkpoint(run_dir, "preempted")["global_step"] == 2
    usr1 = signalled(when="batch", epoch=1, batch=5, number=int(signal.SIGUSR1))
    preempted(write(usr1), *AUTO, "--data.num_workers", "2")
    assert [checkpoint(run_dir, name)["global_step"] for name in ("last", "preempted")] == [4, 7]
    fit(write(), *AUTO)
    assert_as_uninterrupted(uninterrupted, run_dir)
    assert [start["from_epoch"] for start in starts(run_dir)] == [0, 0, 1]
    ended = [start["ended"] for start in starts(run_dir)[:2]]
    assert ended == [{"epoch": epoch, "error": None, "preempted": True} for epoch in (0, 1)]


def test_a_signal_waits_for_what_cannot_be_cut_short(whole, run_dir, capsys):
    uninterrupted, write = whole
    preempted(write(signalled(when="start")), *AUTO)
    assert "no step was made" in capsys.readouterr().err
    preempted(write(signalled(when="validation", epoch=0)), *AUTO)
    assert "after step 4" in capsys.readouterr().err
    assert [row["epoch"] for row in rows(run_dir)] == ["0", "1"]
    preempted(write(signalled(when="batch", epoch=1, batch=7)), *AUTO)  # its last
    assert [row["epoch"] for row in rows(run_dir)] == ["0", "1", "2"]
    fit(
        write(signalled(when="validation", epoch=2)), *AUTO
    )  # the run's last: nothing is left to be continued
    assert_as_uninterrupted(uninterrupted, run_dir)
    assert [start["from_epoch"] for start in starts(run_dir)] == [0, 0, 1, 2]


def test_a_run_that_was_killed_in_its_first_epoch_begins_again_in_its_directory(whole, run_dir):
    uninterrupted, write = whole
    run_dir.mkdir()
    (run_dir / "job.log").touch()  # that of the scheduler may be there first
    with pytest.raises(Interrupted):
        fit(write({"class_path": "test_restarts.Interrupts"}), *AUTO)
    before = json.loads((run_dir / "run.json").read_text())
    (run_dir / "dynamics" / ".student_epoch_0001.npz.0.partial").touch()
    assert [row["epoch"] for row in rows(run_dir)] == ["0"]
    fit(write(), *AUTO)
    assert_as_uninterrupted(uninterrupted, run_dir)
    assert json.loads((run_dir / "run.json").read_text())["id"] == before["id"]
    assert [start["from_epoch"] for start in starts(run_dir)] == [0, 0]


def test_the_handlers_are_put_back(whole, run_dir):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]
    with pytest.raises(Interrupted):
        fit(whole[1]({"class_path": "test_restarts.Interrupts"}), *AUTO)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)] == before


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def altered(path):
    """One byte of the largest tensor is another: torch reads such a file without a word."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def half_a_header(path):
    path.write_bytes(b"PK\x03\x04")


def another(path):
    torch.save({"state_dict": {}}, path)


@pytest.mark.parametrize("damage", [cut, altered, half_a_header, another])
def test_a_damaged_checkpoint_is_left_out(whole, tmp_path, capsys, damage):
    run_dir = tmp_path / "r"
    shutil.copytree(whole[0], run_dir)
    folder = run_dir / "checkpoints"
    assert newest_intact(run_dir) == folder / "last.ckpt"
    assert capsys.readouterr().err == ""
    damage(folder / "last.ckpt")
    (folder / "best.ckpt").unlink()
    (folder / ".last.ckpt.1.partial").write_bytes(b"half")
    assert newest_intact(run_dir) == folder / "epoch_0002.ckpt"
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"left out {folder}/last.ckpt: ")
    damage(folder / "epoch_0002.ckpt")
    assert newest_intact(run_dir) is None


def test_a_run_goes_on_from_the_newest_whole_checkpoint(whole, run_dir, tmp_path, capsys):
    uninterrupted = whole[0]
    shutil.copytree(uninterrupted, run_dir)
    for name in ("last", "best"):
        cut(run_dir / "checkpoints" / f"{name}.ckpt")
    error = refused(capsys, "fit", "--config", run_dir / "config.yaml", "--ckpt_path", "best")
    assert f"error: {run_dir}/checkpoints/best.ckpt: cut short" in error
    fit(run_dir / "config.yaml", "--ckpt_path", "last")
    assert_as_uninterrupted(uninterrupted, run_dir)
    assert [start["from_epoch"] for start in starts(run_dir)] == [0, 2]


def test_the_middle_of_an_epoch_goes_on_as_it_began_or_not_at_all(whole, run_dir, capsys):
    config = whole[1](signalled(when="batch", epoch=1, batch=2))
    preempted(config, *AUTO)
    capsys.readouterr()
    for option, told in (
        (("--data.batch_size", "8"), "images a batch 16, now 8. Give"),
        (("--data.seed", "7"), "seed 1, now 7. Give"),
        (("--data.repeats", "1", "--data.batch_size", "8"), "a batch 16, now 8; repeats 3, now 1. Give"),
    ):
        assert told in refused(capsys, "fit", "--config", config, *AUTO, *option)
    assert checkpoint(run_dir, "preempted")["epoch"] == 1


def test_an_epoch_begun_on_other_devices_is_made_anew(whole, run_dir, capsys):
    uninterrupted, write = whole
    preempted(write(signalled(when="batch", epoch=1, batch=4)), *AUTO)
    path = run_dir / "checkpoints" / "preempted.ckpt"
    saved = torch.load(path, weights_only=True)
    saved["distill_dynamics"]["begun_epoch"]["layout"]["nodes"] = 2
    torch.save(saved, path)
    capsys.readouterr()
    fit(write(), *AUTO)
    error = capsys.readouterr().err
    assert f"{path} is of the middle of epoch 2, begun on 1 devices of 2 nodes; on 1 devices of 1" in error
    assert f"nodes that epoch is made anew, from {run_dir}/checkpoints/last.ckpt" in error
    assert_as_uninterrupted(uninterrupted, run_dir)
    assert [start["from_epoch"] for start in starts(run_dir)] == [0, 1]


def test_a_run_that_fell_back_to_an_older_checkpoint_stays_there(whole, run_dir, monkeypatch):
    uninterrupted, write = whole
    shutil.copytree(uninterrupted, run_dir)
    older = run_dir / "checkpoints" / "epoch_0002.ckpt"
    again = ["--name", "r", "--ckpt_path", str(older)]
    with pytest.raises(Interrupted):  # before the end of the epoch that it makes anew
        fit(write({"class_path": "test_restarts.Interrupts"}), *again)
    assert checkpoint(run_dir)["epoch"] + 1 == 2
    assert [row["epoch"] for row in rows(run_dir)] == ["0", "1", "2"]
    # What is of later epochs has not happened: neither the report nor a probe knows it.
    later = Profile.load(run_dir / "dynamics" / "student_epoch_0003.npz")
    later.epoch = 9
    later.save(run_dir / "dynamics" / "student_epoch_0009.npz")
    known = read_fit(run_dir).profiles
    assert ([profile.epoch for profile in known.students], known.best) == ([0, 1, 2], None)
    seen = []

    def watched(profiles):
        seen.append([profile.epoch for profile in profiles])
        return evolution(profiles)

    monkeypatch.setattr("distill_dynamics.callbacks.probe.evolution", watched)
    fit(write(), *AUTO)
    assert seen == [[0, 1, 2, 3]]
    (run_dir / "dynamics" / "student_epoch_0009.npz").unlink()
    assert_as_uninterrupted(uninterrupted, run_dir)
    assert [start["from_epoch"] for start in starts(run_dir)] == [0, 2, 2]


def test_the_best_student_is_exported_with_the_score_of_its_own_checkpoint(whole, run_dir):
    """Killed between the best and the last, a run remembers the best before."""
    uninterrupted, write = whole
    shutil.copytree(uninterrupted, run_dir)
    shutil.copy(run_dir / "checkpoints" / "epoch_0002.ckpt", run_dir / "checkpoints" / "last.ckpt")
    shutil.rmtree(run_dir / "student")
    fit(write(), *AUTO, "--trainer.max_epochs", "2")
    with safetensors.safe_open(run_dir / "student" / "model.safetensors", "pt") as file:
        said = {name: json.loads(file.metadata()[name]) for name in ("epoch", "val_acc1")}
    assert said["epoch"] == checkpoint(run_dir, "best")["epoch"] + 1 == 3
    assert said["val_acc1"] == float(rows(uninterrupted)[3]["val/acc1"])


class Dies(pl.Callback):
    """Kills this process while it writes the checkpoint of an epoch: halfway, or before it gets its name."""

    def __init__(self, epoch: int, written: float):
        self.epoch, self.written = epoch, written

    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch == self.epoch:
            self.save, self.replace = trainer.strategy.checkpoint_io.save_checkpoint, os.replace
            trainer.strategy.checkpoint_io.save_checkpoint = self.save_half
            os.replace = self.replace_never

    def save_half(self, content, path, storage_options=None):
        if Path(path).name != "last.ckpt" or self.written == 1:
            return self.save(content, path)
        with atomic_write(path) as partial:
            torch.save(content, partial)
            os.truncate(partial, int(partial.stat().st_size * self.written))
            return os.kill(os.getpid(), signal.SIGKILL)

    def replace_never(self, partial, path):
        if Path(path).name == "last.ckpt":
            os.kill(os.getpid(), signal.SIGKILL)
        self.replace(partial, path)


@pytest.mark.slow
@pytest.mark.parametrize("written", [0.0, 0.5, 1.0])
def test_a_run_that_was_killed_while_it_wrote_a_checkpoint_goes_on_from_the_one_before(
    whole, run_dir, written
):
    uninterrupted, write = whole
    dies = {"class_path": "test_restarts.Dies", "init_args": {"epoch": 1, "written": written}}
    process = started(write(dies), *AUTO)
    assert process.wait(120) == -signal.SIGKILL, process.stderr.read()
    (half,) = (run_dir / "checkpoints").glob(".last.ckpt.*.partial")
    assert checkpoint(run_dir)["epoch"] == 0
    if written == 1:
        assert torch.load(half, weights_only=True)["epoch"] == 1
    fit(write(), *AUTO)
    assert_as_uninterrupted(uninterrupted, run_dir)
    assert [start["from_epoch"] for start in starts(run_dir)] == [0, 1]


def test_auto_needs_to_know_the_run(whole, capsys):
    config = whole[1]()
    for args, told in ((["fit"], "give --name"), (["validate", "--name", "whole"], "is for fit")):
        assert told in refused(capsys, *args, "--config", config, "--ckpt_path", "auto")


def started(config, *args, in_step=False) -> subprocess.Popen:
    """A fit of "r" in a process of its own whose training has begun; with `Slow` and `in_step`, a step."""
    run_dir = Path(yaml.safe_load(config.read_text())["runs_dir"]) / "r"
    file = run_dir / "training"

    def written():
        if in_step:
            return file.stat().st_mtime_ns if file.exists() else 0
        return len(starts(run_dir)) if (run_dir / "run.json").exists() else 0

    before = written()
    command = program("fit", "--config", config, *args)
    process = subprocess.Popen(**command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while process.poll() is None and written() == before:
        time.sleep(0.02)
    return process


def descendants(pid: int) -> list[int]:
    """Of a process, itself included: what a scheduler's signal to a job reaches."""
    try:
        children = "".join(path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")).split()
    except OSError:  # it has ended in the meantime
        return []
    return [pid, *(found for child in children for found in descendants(int(child)))]


def kill(process: subprocess.Popen) -> None:
    send(descendants(process.pid), signal.SIGKILL)
    process.wait()


def send(pids: list[int], number: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


@pytest.mark.slow
@pytest.mark.timeout(1800)  # six starts of two processes, on whatever else the machine has to do
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_killed_at_random_moments_ends_as_an_uninterrupted_one(whole, run_dir, ranks):
    uninterrupted, write = whole
    options = [*AUTO, "--wandb.mode", "offline"]
    if ranks == 2:
        devices = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
        options += devices
        uninterrupted = run_dir.with_name("two")
        process = started(write(), "--name", "two", *devices)
        assert process.wait() == 0
    drawn = random.Random(ranks)
    moments, epoch = [drawn.uniform(0, 3) for _ in range(4)], 8 * 0.2
    assert sum(moment // epoch for moment in moments) == 2  # of 3 epochs, on a machine that takes no time
    slow = write({"class_path": "test_restarts.Slow", "init_args": {"seconds": epoch / 8}})
    for moment in moments:
        process = started(slow, *options)
        time.sleep(moment)
        kill(process)
    process = started(slow, *options)
    assert process.wait(300) == 0, process.stderr.read()
    assert_as_uninterrupted(uninterrupted, run_dir)
    assert [row["epoch"] for row in rows(run_dir)] == ["0", "1", "2", "3"]
    assert len(starts(run_dir)) == 5
    assert [start["ended"] for start in starts(run_dir)[:-1]] == 4 * [None]
    identity = json.loads((run_dir / "run.json").read_text())["id"]
    offline = list((run_dir / "wandb").glob("offline-run-*"))
    assert len(offline) == 5
    assert all(path.name.endswith(f"r-{identity}") for path in offline)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_signal_to_every_process_of_a_job_is_survived(whole, run_dir, ranks):
    uninterrupted, write = whole
    options = [*AUTO, "--wandb.mode", "offline", "--data.num_workers", "2"]
    if ranks == 2:
        devices = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
        options += devices
        uninterrupted = run_dir.with_name("two")
        if not uninterrupted.exists():
            assert started(write(), "--name", "two", *devices).wait() == 0
    slow = write({"class_path": "test_restarts.Slow", "init_args": {"seconds": 0.2}})
    for number, wait in ((signal.SIGTERM, 0.5), (signal.SIGUSR1, 1.0)):
        process = started(slow, *options, in_step=True)
        time.sleep(wait)
        reached = descendants(process.pid)
        assert len(reached) > 3 * ranks  # with the workers, and W&B's own process
        send(reached, number)
        time.sleep(0.3)
        send(reached, number)  # a launcher that passes on what has come already
        error = process.communicate(timeout=120)[1]
        assert process.returncode == 75, error
        assert "--ckpt_path auto" in error
        if number == signal.SIGUSR1:  # SIGTERM ends W&B's process, too, of which it complains
            assert "Traceback" not in error
        assert starts(run_dir)[-1]["ended"]["preempted"]
    assert started(slow, *options).wait(300) == 0
    assert_as_uninterrupted(uninterrupted, run_dir)


@pytest.mark.slow
def test_a_run_goes_on_on_two_devices(whole, run_dir):
    """A global batch then holds the same images; without dropout and ProjectorKD the steps are the same."""
    _, write = whole
    plain = {"model__terms": {}, "trainer__accumulate_grad_batches": 1}
    plain |= {f"data__init_args__{name}": 32 for name in ("batch_size", "global_batch")}
    for rate in ("proj_drop_rate", "drop_path_rate"):
        plain[f"model__student__timm_kwargs__{rate}"] = 0.0
    fit(write(**plain), "--name", "one")
    preempted(write(signalled(when="batch", epoch=1, batch=4), **plain), *AUTO)
    devices = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    process = started(write(**plain), *AUTO, *devices)
    error = process.communicate(timeout=120)[1]
    assert process.returncode == 0, error
    assert error.count("epoch 2, begun on 1 devices; on 2 devices that epoch is made anew") == 1
    assert [(start["from_epoch"], start["devices"]) for start in starts(run_dir)] == [
        (0, "1 x cpu"), (1, "2 x cpu"),
    ]  # fmt: skip
    for ours, theirs in zip(rows(run_dir), rows(run_dir.with_name("one")), strict=True):
        for name in ("epoch", "step", "train/loss", "train/loss_kd", "train/lr"):
            assert float(ours[name] or 0) == pytest.approx(float(theirs[name] or 0), rel=1e-4), name
    assert not (run_dir / "checkpoints" / "preempted.ckpt").exists()


@pytest.mark.slow
def test_ranks_that_see_different_run_directories_are_refused(whole, run_dir, tmp_path):
    """As on two nodes that share no file system; the launcher of each is this test."""
    uninterrupted, write = whole
    shutil.copytree(uninterrupted, run_dir)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    words = ["fit", "--config", write(), *AUTO]
    words += ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.max_epochs", "4"]
    ranks = [
        subprocess.Popen(
            **program(*words, "--runs_dir", folder, **group, LOCAL_RANK=str(rank)),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        for rank, folder in enumerate((run_dir.parent, tmp_path))
    ]
    before = rows(run_dir)
    for process in ranks:
        error = process.communicate(timeout=120)[1]
        assert process.returncode == 2, error
        (line,) = [line for line in error.splitlines() if line.startswith("error: ")]
        assert "the first process goes on from epoch 3, step 12, another from another checkpoint" in line
    assert rows(run_dir) == before


@pytest.mark.slow
def test_one_rank_that_is_asked_to_stop_stops_all_at_the_same_step(whole, run_dir):
    devices = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    process = started(whole[1](signalled(when="batch", epoch=1, batch=2, rank=1)), *AUTO, *devices)
    error = process.communicate(timeout=120)[1]
    assert process.returncode == 75, error
    assert "in epoch 2 after step 7" in error  # asked in step 6; the ranks know of it after the next


@pytest.mark.slow
def test_a_signal_to_an_interpreter_that_is_ending_changes_nothing(whole, run_dir):
    """As SLURM's to all tasks when the first of them has left."""
    ending = run_dir.with_name("ending")
    slow = {"class_path": "test_restarts.EndsSlowly", "init_args": {"file": str(ending)}}
    process = started(whole[1](slow, signalled(when="batch", batch=4)), *AUTO)
    while process.poll() is None and not ending.exists():
        time.sleep(0.02)
    assert process.poll() is None
    for number in (signal.SIGTERM, signal.SIGUSR1):
        process.send_signal(number)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 75, error


@pytest.mark.slow
def test_a_second_signal_ends_the_process_at_once(whole, run_dir):
    stuck = whole[1]({"class_path": "test_restarts.Slow", "init_args": {"seconds": 60}})
    process = started(stuck, *AUTO, in_step=True)
    process.send_signal(signal.SIGTERM)
    time.sleep(SAME_SIGNAL_S + 1)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == -signal.SIGTERM
    assert not (run_dir / "checkpoints").exists()
