"""Several ranks that Lightning starts itself: whatever fails, one line, one status, and no process left."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import lightning.pytorch as pl
import pytest
from conftest import program
from PIL import Image

from distill_dynamics.data.keyed import KeyedSampler

pytestmark = pytest.mark.slow  # each starts two processes


class Fails(pl.Callback):
    """One rank fails in its second epoch."""

    def __init__(self, rank: int, how: str):
        self.rank, self.how = rank, how

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if (trainer.global_rank, trainer.current_epoch, batch_idx) != (self.rank, 1, 1):
            return
        if self.how == "OSError":
            raise OSError(28, "No space left on device", "file")
        if self.how == "bug":
            raise RuntimeError("a bug")
        if self.how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def two_ranks(experiment, tmp_path):
    """Runs two ranks to their end: exit status, lines that tell an error, stderr, and how run.json has it."""

    def fit(**changes):
        config = experiment(trainer__devices=2, trainer__max_epochs=3, probe__every_n_epochs=0, **changes)
        command = program("fit", "--config", config, "--name", "r")
        done = subprocess.run(**command, capture_output=True, timeout=120, check=False)
        until = time.monotonic() + 8  # torch's workers look every five seconds whether they are alone
        while (left := processes_of(config)) and time.monotonic() < until:
            time.sleep(0.1)
        assert left == []
        said = [line for line in done.stderr.splitlines() if "error" in line.lower()]
        record = tmp_path / "runs" / "r" / "run.json"
        starts = json.loads(record.read_text())["starts"] if record.exists() else [{"ended": None}]
        return done.returncode, said, done.stderr, starts[0]["ended"]

    return fit


def processes_of(config: Path) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if os.fsencode(config) in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except OSError:  # it has ended
            continue
    return found


def test_a_loss_that_is_no_number_on_all_ranks(two_ranks):
    broken = {"class_path": "test_faults.BreaksDown", "init_args": {"call": 5}}
    status, said, error, ended = two_ranks(model__terms={"odd": {"loss": broken, "last": 1}})
    assert status == 2, error
    assert len(said) == 1, error
    assert "step 5 (epoch 2) is not finite: odd" in said[0]
    assert "Traceback" not in error
    assert ended["error"].startswith("UserError: the loss at step 5")


def test_a_mistake_that_all_ranks_find_in_setup(two_ranks, tmp_path):
    status, said, error, _ = two_ranks(
        model__student__timm_kwargs__num_classes=7, model__teacher=None, model__terms=None
    )
    assert status == 2, error
    assert len(said) == 1, error
    assert "model.student has 7 classes and the data 10" in said[0]
    assert not (tmp_path / "runs" / "r").exists()


def test_terms_that_leave_weights_without_a_gradient(two_ranks, tmp_path):
    spectral = {"loss": {"class_path": "distill_dynamics.losses.SpectralKD"}, "first": 1}
    terms = {"ce": None, "x": spectral}
    status, said, error, _ = two_ranks(model__alpha=0, model__terms=terms)
    assert status == 2, error
    assert len(said) == 1, error
    assert "ddp_find_unused_parameters_true" in said[0]
    assert not (tmp_path / "runs" / "r").exists()
    strategy = {"trainer__strategy": "ddp_find_unused_parameters_true"}
    status, said, error, _ = two_ranks(model__alpha=0, model__terms=terms, **strategy)
    assert status == 0, error


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_image_that_one_rank_cannot_read(two_ranks, tmp_path, num_workers):
    images = tmp_path / "images"
    paths = []
    for split in ("train", "val"):
        for name in ("a", "b"):
            folder = images / split / name
            folder.mkdir(parents=True)
            for number in range(8):
                paths.append(folder / f"{number}.png")
                Image.new("RGB", (20, 20), (30 * number, 99, 7)).save(paths[-1])
    first = next(iter(KeyedSampler(16, seed=1, rank=1, world=2)))
    broken = paths[first.image]
    broken.write_bytes(broken.read_bytes()[:40])
    vit = {"img_size": 16, "patch_size": 8, "num_classes": 2, "embed_dim": 16, "num_heads": 2, "depth": 2}
    settings = {"data_dir": str(images), "image_size": 16, "batch_size": 4, "num_workers": num_workers}
    status, said, error, ended = two_ranks(
        model={"student": {"name": "deit_tiny_patch16_224", "timm_kwargs": vit}},
        data={"class_path": "distill_dynamics.data.ImageFolder", "init_args": settings},
    )
    assert status == 2, error
    (line,) = said
    assert f"unreadable image {broken}" in line
    assert "Traceback" not in error
    assert ended["error"].startswith(f"UserError: unreadable image {broken}")


def fails(rank, how):
    return {"trainer__callbacks": [{"class_path": "test_ranks.Fails", "init_args": vars(Fails(rank, how))}]}


@pytest.mark.parametrize("rank", [0, 1])
def test_a_disk_that_is_full_for_one_rank(two_ranks, rank):
    status, said, error, ended = two_ranks(**fails(rank, "OSError"))
    assert status == 2, error
    assert said == ["error: file: No space left on device"]
    assert "Traceback" not in error
    assert "No space left on device" in ended["error"]


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_of_ours_on_one_rank(two_ranks, rank):
    status, _, error, ended = two_ranks(**fails(rank, "bug"))
    assert status == 1, error
    assert error.count("Traceback") == 1
    assert "a bug" in ended["error"]


def test_one_of_the_others_is_killed(two_ranks):
    status, said, error, ended = two_ranks(**fails(1, "killed"))
    assert status in (1, 137), error  # the first process may be told of the lost connection before
    assert ended["error"], said


def test_the_first_is_killed(two_ranks):
    status, _, error, ended = two_ranks(**fails(0, "killed"))
    assert status == -9, error
    assert ended is None
