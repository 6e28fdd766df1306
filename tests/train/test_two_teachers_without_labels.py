"""Two teachers of images without labels: on two ranks as on one, and stopped in the middle as not stopped."""

import signal
import subprocess

import numpy as np
import pytest
import torch
import yaml
from conftest import VIT, fit_once, program, tiny_config
from test_fit import assert_same, assert_same_run, fit, rows

from distill_dynamics.cli.main import main
from distill_dynamics.dynamics import Profile
from distill_dynamics.dynamics.measures.feature_quality import QUALITY

HEADLESS = {**VIT, "num_classes": 0, "depth": 2}
LARGE = {"name": "vit_tiny_patch16_224", "timm_kwargs": {**HEADLESS, "in_chans": 3, "img_size": 56}}
WIDE = {"name": "vit_tiny_patch16_224", "timm_kwargs": {**HEADLESS, "embed_dim": 24, "depth": 3}}
LOSSES = "distill_dynamics.losses"


def config(**changes):
    """TokenKD of one at its own size, PooledKD of the other; no dropout, which is another on each rank."""
    term = {"loss": {"class_path": f"{LOSSES}.TokenKD"}, "weight": 0.5, "last": 1, "teacher": "large"}
    pooled = {"loss": {"class_path": f"{LOSSES}.PooledKD"}, "weight": 0.7, "teacher": "wide"}
    return {
        "model__student": {"name": "deit_tiny_patch16_224", "timm_kwargs": HEADLESS},
        "model__teacher": None,
        "model__teachers": {"large": {"backbone": LARGE}, "wide": {"backbone": WIDE}},
        "model__terms": {"tokens": term, "pooled": pooled},
        "data__init_args__labels": False,
        "data__init_args__views": 2,
        **changes,
    }


@pytest.fixture
def _this_process_goes_on():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("_this_process_goes_on")
def test_a_run_that_was_stopped_in_the_middle_of_an_epoch_ends_as_one_that_was_not(tmp_path, no_report):
    """One teacher with a cache, the other without."""
    cached = {"backbone": LARGE, "cache": str(tmp_path / "cache")}
    given = config(model__teachers={"large": cached, "wide": {"backbone": WIDE}})
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_config(**given)))
    main(["cache-teacher", "--config", str(path)])
    whole = fit_once(tmp_path, "whole", **given)
    signalled = {"class_path": "test_restarts.Signalled", "init_args": {"when": "batch", "batch": 0}}
    signalled["init_args"]["epoch"] = 1
    stop = {**tiny_config(**given, trainer__callbacks=[signalled]), "runs_dir": str(tmp_path)}
    path.write_text(yaml.safe_dump(stop))
    with pytest.raises(SystemExit) as end:
        fit(path, "--name", "r", "--ckpt_path", "auto")
    assert end.value.code == 75
    assert (tmp_path / "r" / "checkpoints" / "preempted.ckpt").is_file()
    path.write_text(yaml.safe_dump({**stop, "trainer": {**stop["trainer"], "callbacks": None}}))
    fit(path, "--name", "r", "--ckpt_path", "auto")
    assert_same_run(whole, tmp_path / "r")
    first = rows(whole)[0]
    assert all(first[f"{role}/{name}"] for role in ("teacher", "teacher_wide") for name in QUALITY)


@pytest.mark.slow
def test_two_ranks_take_the_steps_of_one(experiment, tmp_path):
    """Of one batch in all; every validation image, each once."""

    def run(name, batch, *options, **changes):
        steps = {"class_path": "test_ranks_agree.Steps", "init_args": {"folder": str(tmp_path)}}
        sgd = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.2, "momentum": 0.9}}
        path = experiment(
            name,
            **config(
                model__optimizer=sgd,
                model__scheduler=None,
                data__init_args__global_batch=16,
                data__init_args__batch_size=batch,
                trainer__limit_train_batches=10,
                trainer__limit_val_batches=1.0,
                trainer__max_epochs=1,
                trainer__callbacks=[steps],
                probe__n_images=7,
                **changes,
            ),
        )
        command = program("fit", "--config", path, "--name", name, *options)
        done = subprocess.run(**command, capture_output=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr

    run("one", 16)
    run("two", 8, "--trainer.devices", "2", trainer__strategy="ddp_find_unused_parameters_true")
    one, *two = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("1_0", "2_0", "2_1"))
    assert one["losses"][0] - one["losses"][-1] > 0.01  # it has learned: equal losses say something
    both = (two[0]["losses"] + two[1]["losses"]) / 2
    torch.testing.assert_close(both, one["losses"], rtol=1e-5, atol=0)
    assert not torch.equal(two[0]["losses"], two[1]["losses"])  # each has seen images of its own
    assert_same(two[0]["gradients"], two[1]["gradients"])
    torch.testing.assert_close(two[0]["gradients"], one["gradients"], rtol=1e-4, atol=1e-6)
    tables = [rows(tmp_path / "runs" / name) for name in ("one", "two")]
    for of_one, of_two in zip(*tables, strict=True):
        for name in of_one:
            if name.startswith(("train/loss", "val/", "teacher")) and of_one[name]:
                assert float(of_two[name]) == pytest.approx(float(of_one[name]), rel=1e-4), name
    assert all(tables[0][0][f"teacher_wide/{name}"] for name in QUALITY)
    for name in ("teacher", "teacher_wide", "student_epoch_0001"):
        a, b = (Profile.load(tmp_path / "runs" / run / "dynamics" / f"{name}.npz") for run in ("one", "two"))
        np.testing.assert_allclose(b.magnitude_images, a.magnitude_images, rtol=1e-4)
