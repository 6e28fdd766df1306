import json

import pytest
import torch
from standins import trainer_on_cpu
from test_fit import checkpoint, fit, rows

from distill_dynamics import UserError
from distill_dynamics.data import FashionMNISTSample
from distill_dynamics.data.global_batch import share_batch

STEPS = 3
SPECTRAL = {
    "loss": {"class_path": "distill_dynamics.losses.SpectralKD"},
    "weight": 0.2,
    "first": 1,
    "last": 1,
}

DDP = {
    "class_path": "lightning.pytorch.strategies.DDPStrategy",
    "init_args": {"gradient_as_bucket_view": True, "find_unused_parameters": False},
}


@pytest.mark.parametrize(
    ("asked", "given"),
    [
        ((2048, 256, 1), (256, 8)),
        ((2048, 256, 8), (256, 1)),
        ((2048, 256, 64), (32, 1)),
        ((2048, 300, 8), (256, 1)),
        ((96, 16, 3), (16, 2)),
    ],
)
def test_batch_and_accumulation_follow_from_the_devices(asked, given):
    assert share_batch(*asked) == given
    assert given[0] * given[1] * asked[2] == asked[0]


@pytest.mark.parametrize(
    ("asked", "words"),
    [((2048, 256, 3), ["2048", "3 devices"]), ((2048, 200, 2), ["1024", "200", "128 would do"])],
)
def test_what_cannot_be_shared_is_one_line(asked, words):
    with pytest.raises(UserError) as error:
        share_batch(*asked)
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in ["data.global_batch", *words])


def steps_of(world, batch_size):
    """The views of each step of the optimiser, over all devices."""
    data = FashionMNISTSample(batch_size=batch_size, global_batch=16, seed=3)
    by_step = {}
    for rank in range(world):
        data.trainer = trainer_on_cpu(rank, world, accumulate_grad_batches=1)
        data.setup("fit")
        accumulated = data.trainer.accumulate_grad_batches
        loader = data.train_dataloader()
        loader.sampler.set_epoch(2)
        batches = list(loader.batch_sampler)
        assert len(batches) % accumulated == 0
        for number, batch in enumerate(batches):
            by_step.setdefault(number // accumulated, []).extend(batch)
    return by_step


@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_any_number_of_devices_makes_the_same_steps(world):
    one, several = steps_of(1, 16), steps_of(world, 4)
    assert {len(views) for views in several.values()} == {16}
    assert {step: set(views) for step, views in one.items()} == {step: set(v) for step, v in several.items()}


def one_after_three_steps(experiment, name, batch_size):
    accumulated = 16 // batch_size
    return experiment(
        name,
        model__terms={"spectral": SPECTRAL},
        model__student__timm_kwargs__proj_drop_rate=0.0,
        model__student__timm_kwargs__drop_path_rate=0.0,
        model__optimizer={"class_path": "torch.optim.SGD", "init_args": {"lr": 0.5, "momentum": 0.9}},
        model__scheduler=None,
        data__init_args__batch_size=batch_size,
        data__init_args__global_batch=16,
        trainer__limit_train_batches=STEPS * accumulated,
        trainer__max_epochs=1,
        probe__every_n_epochs=0,
    )


def assert_same_training(one, other):
    whole, parts = checkpoint(one), checkpoint(other)
    assert whole["global_step"] == parts["global_step"] == STEPS
    for key, value in whole["state_dict"].items():
        torch.testing.assert_close(parts["state_dict"][key], value, rtol=1e-5, atol=1e-6)
    a, b = rows(one)[-1], rows(other)[-1]
    for name in ("train/loss", "train/loss_ce", "train/loss_kd", "train/loss_spectral", "train/lr"):
        assert float(a[name]) == pytest.approx(float(b[name]), rel=1e-5)
    for run in (one, other):
        start = json.loads((run / "run.json").read_text())["starts"][0]
        assert start["images_a_step"] == 16


def test_accumulated_parts_train_as_the_whole_batch(experiment, tmp_path):
    runs = tmp_path / "runs"
    fit(one_after_three_steps(experiment, "whole", 16), "--name", "whole")
    fit(one_after_three_steps(experiment, "parts", 4), "--name", "parts")
    assert_same_training(runs / "whole", runs / "parts")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"trainer__accumulate_grad_batches": 4}, ["accumulate_grad_batches", "data.global_batch", "one of"]),
        ({"data__init_args__batch_size": 12}, ["data.global_batch: 32", "data.batch_size 12", "8 would do"]),
        ({"data__init_args__global_batch": 0}, ["data.global_batch: 0 must be at least 1"]),
        ({"data__init_args__global_batch": 10**6}, ["data.global_batch: 1000000 is more than"]),
    ],
)
def test_what_is_refused(experiment, tmp_path, capsys, changes, words):
    changes = {"data__init_args__global_batch": 32, "probe__every_n_epochs": 0, **changes}
    with pytest.raises(SystemExit) as stop:
        fit(experiment(**changes))
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert all(word in line for word in words)
