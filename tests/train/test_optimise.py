"""The learning rate of a whole training: the default for any length, and that of a run that goes on."""

import math
import types

import lightning.pytorch as pl
import pytest
import torch
from conftest import VIT
from lightning.pytorch.cli import ReduceLROnPlateau
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR, StepLR

from distill_dynamics import Backbone, Distiller, UserError
from distill_dynamics.data import FashionMNISTSample
from distill_dynamics.schedule import ProgressCosine, WarmupCosine
from distill_dynamics.train.optimise import Optimisation

LR = 1e-3


def expected(progress):
    """The definition in `warmup_then_cosine`'s words, for a warm-up of a tenth and an end of a hundredth."""
    if progress < 0.1:
        return LR * progress / 0.1
    share = (progress - 0.1) / 0.9
    return LR * (0.01 + 0.99 * (1 + math.cos(math.pi * share)) / 2)


class Steps(pl.Callback):
    """Keeps the rate of every step of the optimiser, and a checkpoint after one of them."""

    def __init__(self, saved_after=None, path=None):
        self.rates, self.saved_after, self.path = [], saved_after, path

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.rates.append(optimizer.param_groups[0]["lr"])

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == self.saved_after and not trainer.is_last_batch:
            trainer.save_checkpoint(self.path)

    def on_train_epoch_end(self, trainer, *args):
        if trainer.global_step == self.saved_after:
            trainer.save_checkpoint(self.path)


def distiller(**kwargs):
    torch.manual_seed(0)
    return Distiller(Backbone("deit_tiny_patch16_224", timm_kwargs={**VIT, "depth": 1}), **kwargs)


def fit(tmp_path, model, steps=None, ckpt_path=None, batch=8, **settings):
    steps = steps or Steps()
    runner = pl.Trainer(
        **{
            "max_epochs": 3,
            "limit_train_batches": 5,
            "limit_val_batches": 1,
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "accelerator": "cpu",
            "default_root_dir": tmp_path,
            "callbacks": [steps],
            **settings,
        }
    )
    data = FashionMNISTSample(batch_size=batch, eval_batch_size=100)
    runner.fit(model, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    return runner, steps


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({}, 15),
        ({"max_epochs": 1, "limit_train_batches": 1}, 1),
        ({"accumulate_grad_batches": 2}, 9),  # the third step of an epoch is of one batch
        ({"max_steps": 7}, 7),
        ({"max_epochs": -1, "max_steps": 12}, 12),
        ({"max_epochs": 300, "max_steps": 4, "accumulate_grad_batches": 3}, 4),
    ],
)
def test_the_default_fits_the_steps_that_are_made(tmp_path, settings, steps):
    model = distiller()
    _, seen = fit(tmp_path, model, **settings)
    wanted = [expected((step + 0.5) / steps) for step in range(steps)]
    assert seen.rates == pytest.approx(wanted, rel=1e-12)
    told = model.optimisation.rates()
    assert (told.start, told.end) == pytest.approx((wanted[0], wanted[-1]), rel=1e-12)
    assert told.peak == LR
    assert told.warning is None


@pytest.mark.parametrize("saved_after", [4, 5, 8])
def test_a_run_that_goes_on_has_the_default_rates_of_one_that_was_not_stopped(tmp_path, saved_after):
    path = tmp_path / "x.ckpt"
    _, whole = fit(tmp_path, model := distiller(), Steps(saved_after, path))
    _, rest = fit(tmp_path, again := distiller(), ckpt_path=path)
    assert rest.rates == whole.rates[saved_after:]
    for a, b in zip(model.student.parameters(), again.student.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_longer_run_on_other_batches_keeps_its_place_in_the_training(tmp_path):
    path = tmp_path / "x.ckpt"
    fit(tmp_path, distiller(), Steps(5, path), max_epochs=1)
    _, rest = fit(tmp_path, distiller(), ckpt_path=path, max_epochs=2, limit_train_batches=3)
    assert rest.rates == pytest.approx([expected((1 + (i + 0.5) / 3) / 2) for i in range(3)], rel=1e-12)


def adam(**options):
    return lambda params: torch.optim.AdamW(params, **options)


@pytest.mark.parametrize(
    "schedule", [None, ProgressCosine, lambda optimizer: WarmupCosine(optimizer, warmup_epochs=0)]
)
def test_changed_settings_act_in_a_run_that_goes_on(tmp_path, capsys, schedule):
    path = tmp_path / "x.ckpt"
    old, new = adam(lr=2e-3, weight_decay=0.05), adam(lr=1e-4, weight_decay=0.5, betas=(0.8, 0.9))
    fit(tmp_path, distiller(optimizer=old, scheduler=schedule), Steps(5, path))
    capsys.readouterr()
    runner, rest = fit(tmp_path, distiller(optimizer=new, scheduler=schedule), ckpt_path=path)
    _, anew = fit(tmp_path, distiller(optimizer=new, scheduler=schedule))
    assert rest.rates == anew.rates[5:]
    decayed, spared = runner.optimizers[0].param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.5, 0.0)
    assert tuple(decayed["betas"]) == tuple(spared["betas"]) == (0.8, 0.9)
    line = capsys.readouterr().err
    assert "lr 0.002, now 0.0001" in line
    assert "weight_decay 0.05, now 0.5" in line


def test_a_run_that_goes_on_in_another_precision_says_so(tmp_path, capsys):
    path = tmp_path / "x.ckpt"
    fit(tmp_path, distiller(), Steps(5, path))
    fit(tmp_path, distiller(), ckpt_path=path)
    assert "precision" not in capsys.readouterr().err
    fit(tmp_path, distiller(), ckpt_path=path, precision="bf16-mixed")
    assert "checkpoint: precision 32-true, now bf16-mixed\n" in capsys.readouterr().err
    earlier = torch.load(path, weights_only=True)
    del earlier["distill_dynamics"]["settings"]["precision"]  # as before it was recorded
    torch.save(earlier, path)
    fit(tmp_path, distiller(), ckpt_path=path)
    assert "checkpoint: precision not recorded, now 32-true\n" in capsys.readouterr().err


def test_a_schedule_that_is_another_acts_where_the_rate_follows_from_the_place(tmp_path, capsys):
    path = tmp_path / "x.ckpt"
    long = lambda optimizer: WarmupCosine(optimizer, warmup_epochs=2, warmup_lr=0.0)  # noqa: E731
    fit(tmp_path, distiller(scheduler=StepLR1), Steps(5, path))
    _, rest = fit(tmp_path, distiller(scheduler=long), ckpt_path=path)
    _, anew = fit(tmp_path, distiller(scheduler=long))
    assert rest.rates == anew.rates[5:]
    assert "scheduler StepLR, now WarmupCosine" in capsys.readouterr().err


def StepLR1(optimizer, gamma=0.5):
    return StepLR(optimizer, step_size=1, gamma=gamma)


def test_a_schedule_that_cannot_change_on_the_way_is_one_line(tmp_path, capsys):
    path = tmp_path / "x.ckpt"
    _, whole = fit(tmp_path, distiller(scheduler=StepLR1), Steps(5, path))
    _, rest = fit(tmp_path, distiller(scheduler=StepLR1), ckpt_path=path)
    assert rest.rates == whole.rates[5:]
    with pytest.raises(UserError, match=r"model\.scheduler: .* gamma 0\.5, here it is 0\.1"):
        fit(tmp_path, distiller(scheduler=lambda o: StepLR1(o, 0.1)), ckpt_path=path)
    with pytest.raises(UserError, match=r"model\.scheduler: .* StepLR, here it is ReduceLROnPlateau"):
        fit(tmp_path, distiller(scheduler=lambda o: ReduceLROnPlateau(o, "val/loss")), ckpt_path=path)
    sgd = lambda params: torch.optim.SGD(params, lr=0.1)  # noqa: E731
    with pytest.raises(UserError, match=r"model\.optimizer: .* AdamW, here it is SGD"):
        fit(tmp_path, distiller(scheduler=StepLR1, optimizer=sgd), ckpt_path=path)
    capsys.readouterr()
    _, rest = fit(tmp_path, distiller(scheduler=StepLR1, optimizer=adam(lr=0.5)), ckpt_path=path)
    assert rest.rates == whole.rates[5:]
    assert "does not act: StepLR has a rate of its own" in capsys.readouterr().err


def test_reduce_on_plateau_is_torchs_through_an_interruption(tmp_path):
    path = tmp_path / "x.ckpt"
    make = lambda o: ReduceLROnPlateau(o, "val/acc1", mode="max", patience=0, factor=0.5, threshold=100.0)  # noqa: E731
    settings = {"max_epochs": 5, "check_val_every_n_epoch": 2}
    _, whole = fit(tmp_path, distiller(scheduler=make), Steps(15, path), **settings)
    # Validated after 2 and 4 epochs: the second is not a hundred times better than the first.
    assert whole.rates == [LR] * 20 + [LR / 2] * 5
    _, rest = fit(tmp_path, distiller(scheduler=make), ckpt_path=path, **settings)
    assert rest.rates == whole.rates[15:]


@pytest.mark.parametrize(
    ("make", "settings", "words"),
    [
        (lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o), {}, "lightning.pytorch.cli.ReduceLROnP"),
        (lambda o: ReduceLROnPlateau(o, "val/acc1"), {}, "needs mode: max"),
        (lambda o: ReduceLROnPlateau(o, "val/loss", mode="max"), {}, "needs mode: min"),
        (lambda o: ReduceLROnPlateau(o, "val/loss"), {"limit_val_batches": 0}, "limit_val_batches is 0"),
        (lambda o: ReduceLROnPlateau(o, "val_loss"), {"callbacks": []}, "no metric val_loss"),
        (lambda o: OneCycleLR(o, 0.1, total_steps=1), {}, "no rate for epoch 3 of 3"),
        (ProgressCosine, {"max_epochs": -1}, "without end"),
        (WarmupCosine, {"max_epochs": -1}, "without end"),
    ],
)
def test_a_schedule_that_cannot_work_is_one_line_before_the_first_step(tmp_path, make, settings, words):
    steps = Steps()
    with pytest.raises(UserError) as error:
        fit(tmp_path, distiller(scheduler=make), steps, **settings)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert steps.rates == []


@pytest.mark.parametrize(
    ("make", "epochs", "warned"),
    [
        (WarmupCosine, 1, True),  # never leaves its warm-up of 5 epochs, one late
        (WarmupCosine, 10, True),
        (WarmupCosine, 12, False),
        (lambda o: WarmupCosine(o, warmup_epochs=0), 1, False),
        (lambda o: torch.optim.lr_scheduler.LinearLR(o, total_iters=5), 10, True),
        (lambda o: OneCycleLR(o, 0.1, total_steps=20), 20, False),
        (lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 4), 4, False),
        (StepLR1, 1, False),
        (None, 3, False),
        (ProgressCosine, 1, False),
    ],
)
def test_a_warm_up_of_half_the_training_is_warned_of(make, epochs, warned):
    trainer = types.SimpleNamespace(
        max_epochs=epochs, max_steps=-1, num_training_batches=7, accumulate_grad_batches=1,
        precision=None, precision_plugin=None, limit_val_batches=1.0,
    )  # fmt: skip
    groups = [{"params": [nn.Parameter(torch.zeros(()))]}]
    rates = Optimisation(adam(lr=LR), groups, 1.0, make, trainer).rates()
    assert (rates.warning is not None) == warned
    if warned:
        assert f"training has {epochs} in all" in rates.warning


def test_the_published_schedule_ends_where_max_steps_ends_the_training(tmp_path):
    make = lambda optimizer: WarmupCosine(optimizer, warmup_epochs=0)  # noqa: E731
    _, cut = fit(tmp_path, distiller(scheduler=make), max_epochs=300, max_steps=15)
    _, three = fit(tmp_path, distiller(scheduler=make), max_epochs=3)
    assert cut.rates == three.rates


@pytest.mark.slow
@pytest.mark.parametrize(("epochs", "least"), [(1, 25), (3, 50), (10, 65)])
def test_with_nothing_set_but_models_and_data_a_student_learns(tmp_path, epochs, least):
    pl.seed_everything(0)
    small = {"patch_size": 7, "embed_dim": 48, "depth": 6}
    student = Backbone("deit_tiny_patch16_224", timm_kwargs={**VIT, **small})
    teacher = Backbone("cait_xxs24_224", checkpoint="packaged:cait_fashion_mnist")
    runner = pl.Trainer(
        max_epochs=epochs, logger=False, enable_progress_bar=False, enable_model_summary=False,
        accelerator="cpu", default_root_dir=tmp_path, num_sanity_val_steps=0,
    )  # fmt: skip
    runner.fit(Distiller(student, teacher), datamodule=FashionMNISTSample())
    assert runner.callback_metrics["val/acc1"] > least
