"""What a run does when something around it fails: one line, and nothing that was written is lost."""

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from threading import Event

import lightning.pytorch as pl
import pytest
import torch
import wandb
from conftest import program, refused
from PIL import Image
from test_fit import checkpoint, fit, rows

from distill_dynamics.callbacks.finite import FiniteLoss
from distill_dynamics.files import atomic_write

pytestmark = pytest.mark.usefixtures("no_report")


def failed(capsys, config, *args) -> str:
    """The one line of a fit that ends with exit status 2."""
    error = refused(capsys, "fit", "--config", config, *args)
    (line,) = [line for line in error.splitlines() if "error" in line.lower()]
    return line


def content(run_dir):
    return {path.relative_to(run_dir): path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}


class BreaksDown(torch.nn.Module):
    """A loss that is no number from one call on; from then on neither are the weights, nor any other part."""

    def __init__(self, student_channels: int, teacher_channels: int, call: int):
        super().__init__()
        self.calls, self.call = 0, call

    def forward(self, student_map, teacher_map):
        self.calls += 1
        return student_map.square().mean() * (float("nan") if self.calls >= self.call else 1.0)


@pytest.mark.parametrize("looks", ["at every step", "now and then"])
def test_a_loss_that_is_no_number_stops_the_run_with_its_name(
    experiment, tmp_path, capsys, monkeypatch, looks
):
    if looks == "now and then":  # as on a GPU, where looking at every step would cost time
        monkeypatch.setattr(FiniteLoss, "_is_due", lambda self, trainer, *args: trainer.is_last_batch)
    broken = {"class_path": "test_faults.BreaksDown", "init_args": {"call": 5}}
    terms = {"even": {"loss": {"class_path": "test_distiller.MeanGap"}, "last": 1}}
    terms["odd"] = {"loss": broken, "last": 1}
    line = failed(capsys, experiment(model__terms=terms, trainer__max_epochs=4), "--name", "r")
    run_dir = tmp_path / "runs" / "r"
    assert "step 5 (epoch 2) is not finite: odd." in line
    assert str(run_dir / "checkpoints" / "last.ckpt") in line
    saved = checkpoint(run_dir)
    assert saved["global_step"] == 3
    assert all(value.isfinite().all() for value in saved["state_dict"].values())
    assert [row["epoch"] for row in rows(run_dir)] == ["0", "1"]
    (start,) = json.loads((run_dir / "run.json").read_text())["starts"]
    assert start["ended"]["epoch"] == 1
    assert "odd" in start["ended"]["error"]


def test_a_loss_that_is_no_number_at_once_keeps_the_run_directory(experiment, tmp_path, capsys):
    broken = {"class_path": "test_faults.BreaksDown", "init_args": {"call": 1}}
    config = experiment(model__terms={"odd": {"loss": broken, "last": 1}}, probe__every_n_epochs=0)
    assert "step 1 (epoch 1) is not finite: odd. Nothing was saved since, and no checkpoint" in failed(
        capsys, config, "--name", "r"
    )
    assert (tmp_path / "runs" / "r" / "run.json").exists()


class BreaksWeights(pl.Callback):
    """After a step every weight of the head is infinite, as a gradient can leave them under a finite loss."""

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == (1, 2):
            module.student.model.head.weight.data.fill_(float("inf"))


@pytest.mark.parametrize("alone", [False, True])
def test_weights_that_are_no_numbers_are_not_saved(experiment, tmp_path, capsys, alone):
    breaks = [{"class_path": "test_faults.BreaksWeights"}]
    if alone:  # of these Lightning asks the module alone
        settings = {"dirpath": str(tmp_path / "alone"), "save_weights_only": True, "every_n_epochs": 1}
        kept = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": settings}
        breaks.append(kept)
    config = experiment(trainer__callbacks=breaks, probe__every_n_epochs=9, trainer__max_epochs=3)
    assert "what step 6 made of the weights (epoch 2)" in failed(capsys, config, "--name", "r")
    saved = checkpoint(tmp_path / "runs" / "r")
    assert saved["global_step"] == 3
    assert all(value.isfinite().all() for value in saved["state_dict"].values())
    for path in (tmp_path / "alone").glob("*.ckpt"):
        values = torch.load(path, weights_only=True)["state_dict"].values()
        assert all(value.isfinite().all() for value in values)


class DiskFull(pl.Callback):
    """From an epoch on this process can write no file that is larger than this.

    The system then refuses a write as on a full disk, with another reason.
    """

    def __init__(self, epoch: int, largest: int):
        self.epoch, self.largest = epoch, largest

    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch == self.epoch:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.largest, resource.RLIM_INFINITY))


@pytest.mark.parametrize(
    ("largest", "probes", "file"),
    [(100_000, 9, "checkpoints/"), (1000, 9, "metrics.csv"), (1000, 1, "dynamics/student_epoch_0002.npz")],
)
def test_a_full_disk_leaves_what_was_written(experiment, tmp_path, capsys, largest, probes, file):
    settings = {"trainer__max_epochs": 3, "probe__every_n_epochs": probes}
    full = {"class_path": "test_faults.DiskFull", "init_args": {"epoch": 1, "largest": largest}}
    config = experiment(**settings, trainer__callbacks=[full])
    try:
        line = failed(capsys, config, "--name", "r")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    run_dir = tmp_path / "runs" / "r"
    assert f"error: {run_dir / file}" in line
    assert os.strerror(errno.EFBIG) in line
    assert [row["epoch"] for row in rows(run_dir)][:2] == ["0", "1"]
    assert checkpoint(run_dir)["global_step"] == 3
    assert not list(run_dir.rglob("*.partial"))
    if file == "checkpoints/":
        fit(experiment(**settings), "--name", "r", "--ckpt_path", "auto")  # room was made
        assert [row["epoch"] for row in rows(run_dir)] == ["0", "1", "2", "3"]


class FillsDisk(pl.Callback):
    """From an epoch on the run's file system has room for so many bytes."""

    def __init__(self, epoch: int, left: int):
        self.epoch, self.left = epoch, left

    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch == self.epoch:
            root = Path(trainer.default_root_dir).parent
            with (root / "filler").open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(root).free - self.left)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "none", folder]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a file system")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.slow
def test_a_disk_that_is_really_full_leaves_what_was_written(experiment, small_disk):
    def fit(*callbacks):
        config = experiment(
            trainer__max_epochs=3, probe__every_n_epochs=1, trainer__callbacks=list(callbacks)
        )
        words = ["fit", "--config", config, "--name", "r", "--ckpt_path", "auto"]
        command = program(*words, "--runs_dir", small_disk, "--wandb.mode", "offline")
        return subprocess.run(**command, capture_output=True, check=False)

    full = {"class_path": "test_faults.FillsDisk", "init_args": {"epoch": 1, "left": 30_000}}
    done = fit(full)
    assert done.returncode == 2, done.stderr
    run_dir = small_disk / "r"
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert f"{run_dir}/" in line
    assert "No space left on device: 0.0 MiB are free; make room and start again" in line
    assert [row["epoch"] for row in rows(run_dir)][:2] == ["0", "1"]
    assert checkpoint(run_dir)["global_step"] == 3
    assert not list(run_dir.rglob("*.partial"))
    # W&B's process holds its latest rows back, and had no room for them; what it had written can be read.
    assert {row["dynamics/epoch"] for row in wandb_rows(run_dir) if "dynamics/epoch" in row} >= {0}
    (small_disk / "filler").unlink()
    done = fit()
    assert done.returncode == 0, done.stderr
    assert [row["epoch"] for row in rows(run_dir)] == ["0", "1", "2", "3"]


def wandb_rows(run_dir):
    """What the run's first record holds of each step, as W&B's own tool reads it."""
    folder = min((run_dir / "wandb").glob("offline-run-*"))
    tool = [Path(sys.executable).with_name("wandb"), "leet", "inspect", "--json", folder]
    out = subprocess.run(tool, capture_output=True, text=True, check=True).stdout
    records = [json.loads(line) for line in out.splitlines()]
    return [record["history"]["item"] for record in records if record["type"] == "history"]


def test_a_full_disk_is_told_with_the_room_that_is_left(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def write():
        with atomic_write(path) as partial:
            partial.write_text("half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match=r"No space left on device: \d.* MiB are free") as error:
        write()
    assert error.value.filename == str(path)
    assert content(tmp_path) == {path.relative_to(tmp_path): b"old"}


def test_a_run_directory_that_cannot_be_written_is_one_line(experiment, tmp_path, capsys):
    config = experiment()
    file = tmp_path / "file"
    file.touch()
    assert str(file) in failed(capsys, config, "--runs_dir", str(file), "--name", "r")
    assert "/proc/self/fdinfo" in failed(
        capsys, config, "--runs_dir", "/proc/self/fdinfo"
    )  # root cannot either
    run_dir = tmp_path / "runs" / "r"
    run_dir.mkdir(parents=True)
    (run_dir / "dynamics").touch()
    assert str(run_dir / "dynamics") in failed(capsys, config, "--name", "r", "--ckpt_path", "auto")
    assert file.read_bytes() == b""


@pytest.mark.slow  # W&B itself waits for half a minute, whatever it is told
def test_without_its_server_wandb_goes_on_offline(experiment, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("WANDB_API_KEY", 40 * "a")
    with pytest.warns(UserWarning, match="wandb sync"):
        fit(experiment(), "--name", "r", "--wandb.mode", "online", "--trainer.max_epochs", "1")
    (folder,) = (tmp_path / "runs" / "r" / "wandb").glob("offline-run-*")
    identity = json.loads((tmp_path / "runs" / "r" / "run.json").read_text())["id"]
    assert folder.name.endswith(f"r-{identity}")
    assert [row["epoch"] for row in rows(tmp_path / "runs" / "r")] == ["0", "1"]


def test_a_run_has_a_wandb_process_of_its_own(experiment, tmp_path, monkeypatch):
    """That of a process that started it may have gone, or may still have the run of one that was killed."""
    wandb.teardown()  # what a test before has started is not asked for again
    monkeypatch.setenv("WANDB_SERVICE", f"3-{os.getpid()}-unix-{tmp_path}/gone")
    config = experiment(trainer__max_epochs=1, probe__every_n_epochs=0)
    fit(config, "--name", "r", "--wandb.mode", "offline")
    assert list((tmp_path / "runs" / "r" / "wandb").glob("offline-run-*"))


@pytest.mark.parametrize(("epochs", "status"), [(1, 0), (2, 2)])
def test_a_wandb_server_that_went_away_does_not_keep_a_run_from_ending(
    experiment, monkeypatch, capsys, epochs, status
):
    def ended(number):
        raise Ended(number)

    ends = Event()
    monkeypatch.setattr("distill_dynamics.cluster.wandb_end.UPLOAD_S", 0.1)
    monkeypatch.setattr("wandb.run", object())
    monkeypatch.setattr("wandb.finish", lambda status: ends.wait())  # tries for as long as it takes
    monkeypatch.setattr("os._exit", ended)
    broken = {"class_path": "test_faults.BreaksDown", "init_args": {"call": 5}}
    config = experiment(model__terms={"odd": {"loss": broken, "last": 1}}, trainer__max_epochs=epochs)
    with pytest.raises(Ended) as stop:
        fit(config)
    ends.set()
    assert stop.value.args == (status,)
    error = capsys.readouterr().err
    assert "wandb sync" in error.splitlines()[-1]
    assert ("is not finite: odd" in error) == (status == 2)


class Ended(BaseException):
    """In the place of the end of the process."""


@pytest.mark.parametrize("skip", [False, True])
def test_one_broken_image_among_many(experiment, tmp_path, capsys, skip):
    images = tmp_path / "images"
    for split, count in (("train", 8), ("val", 4)):
        for name in ("a", "b"):
            folder = images / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (20, 20), (30 * number, 99, 7)).save(folder / f"{number}.png")
    broken = images / "train" / "b" / "5.png"
    broken.write_bytes(broken.read_bytes()[:40])
    vit = {"img_size": 16, "patch_size": 8, "num_classes": 2, "embed_dim": 16, "num_heads": 2, "depth": 2}
    settings = {
        "data_dir": str(images),
        "skip_unreadable": skip,
        "image_size": 16,
        "batch_size": 8,
        "num_workers": 0,
    }
    config = experiment(
        model={"student": {"name": "deit_tiny_patch16_224", "timm_kwargs": vit}},
        data={"class_path": "distill_dynamics.data.ImageFolder", "init_args": settings},
        probe__n_images=4,
    )
    if not skip:
        line = failed(capsys, config, "--name", "r")
        assert str(broken) in line
        assert "skip_unreadable" in line
        return
    with pytest.warns(UserWarning, match=r"left out unreadable image .*5\.png"):
        fit(config, "--name", "r")
    assert [row["epoch"] for row in rows(tmp_path / "runs" / "r")] == ["0", "1", "2"]
