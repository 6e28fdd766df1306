"""What a schedule of the learning rate comes to in a training, known before its first step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from distill_dynamics.errors import UserError, first_line
from distill_dynamics.runs.scores import OF_CLASSES, OF_FEATURES
from distill_dynamics.schedule import ProgressCosine, WarmupCosine, warmup_then_cosine

MakeScheduler = Callable[[Optimizer], LRScheduler]

LOOKED_AHEAD = 10_000
"""Epochs of a schedule that are computed, at most."""

_BEYOND = 10
"""Epochs after the end in which the highest rate is looked for: a warm-up may be longer than the training."""

_SAME = 1e-6
"""Rates that are equal but for so much are one."""


class Rates(NamedTuple):
    """The first parameter group's."""

    start: float
    peak: float
    peak_epoch: int
    """The first epoch with the highest rate, from 1."""
    end: float
    warning: str | None = None
    """Of a training that is half warm-up or more."""


def rates_by_step(schedule: ProgressCosine, highest: float, epochs: float, steps_an_epoch: int) -> Rates:
    """Of the default schedule, which has a rate for each step."""
    steps = max(round(epochs * steps_an_epoch), 1)
    start, end = (
        highest * warmup_then_cosine((step + 0.5) / steps, schedule.warmup, schedule.end)
        for step in (0, steps - 1)
    )
    return Rates(start, highest, int(schedule.warmup * epochs) + 1, end)


def rates_by_epoch(make: MakeScheduler | None, lrs: Sequence[float], epochs: float) -> Rates:
    """Of any other, by taking its steps on a stand-in; None is a constant rate."""
    known = min(max(math.ceil(epochs), 1), LOOKED_AHEAD) if math.isfinite(epochs) else 1
    ahead = rates_of_epochs(make, lrs, known, known + _BEYOND)
    seen, top = ahead[:known], max(ahead)
    peak = max(seen)
    rising = next(i for i, rate in enumerate(ahead) if rate > top * (1 - _SAME))
    warning = None
    if rising > 0 and rising >= known / 2 and math.isfinite(epochs):
        warning = (
            f"the learning rate rises from {ahead[0]:.3g} until epoch {rising + 1}, and training has {known} "
            "in all: half of it or more is warm-up. Shorten the schedule's warm-up, or leave model.scheduler "
            "out: the default fits any length"
        )
    return Rates(seen[0], peak, seen.index(peak) + 1, seen[-1], warning)


def rates_of_epochs(
    make: MakeScheduler | None, lrs: Sequence[float], epochs: int, beyond: int = 0
) -> list[float]:
    """The rate in each of the epochs and, if the schedule has some, `beyond` more.

    Raises UserError for a schedule that ends before the epochs do.
    """
    stand_in = torch.optim.SGD(
        [{"params": [nn.Parameter(torch.zeros(()))], "lr": lr} for lr in lrs], momentum=0.9
    )
    schedule: Any = make(stand_in) if make else None
    if isinstance(schedule, WarmupCosine) and schedule.epochs is None:
        schedule.epochs = epochs
    stand_in.step()  # or torch warns of a schedule that is ahead of its optimiser
    rates = [float(stand_in.param_groups[0]["lr"])]
    for epoch in range(1, epochs + beyond):
        try:
            if schedule is not None:
                schedule.step()
        except ValueError as error:
            if epoch >= epochs:
                break
            raise UserError(
                f"model.scheduler: it has no rate for epoch {epoch + 1} of {epochs}, as it takes one step an "
                f"epoch ({first_line(error)})"
            ) from error
        rates.append(float(stand_in.param_groups[0]["lr"]))
    return rates


def check_plateau(scheduler: ReduceLROnPlateau, trainer: Trainer) -> None:
    """UserError for one that looks at no metric, at one that nothing measures, or in the wrong direction."""
    monitor = getattr(scheduler, "monitor", None)
    if monitor is None:
        raise UserError(
            "model.scheduler: torch's ReduceLROnPlateau does not say which metric it looks at: take "
            "class_path lightning.pytorch.cli.ReduceLROnPlateau, with init_args monitor: val/loss"
        )
    higher = any(word in monitor for word in ("acc", "knn", "linear"))
    right = "max" if higher else "min" if "loss" in monitor else scheduler.mode
    if scheduler.mode != right:
        raise UserError(
            f"model.scheduler: {monitor} is better when it is {'higher' if right == 'max' else 'lower'}, so "
            f"ReduceLROnPlateau needs mode: {right}"
        )
    known = ["train/loss", *_validated(getattr(trainer, "datamodule", None))]
    callbacks: list[Any] = getattr(trainer, "callbacks", [])
    ours = all(type(one).__module__.startswith(("distill_dynamics.", "lightning.")) for one in callbacks)
    if ours and monitor not in known and not monitor.startswith("train/loss_"):
        raise unknown_metric(monitor, known)
    if monitor.startswith("val/") and trainer.limit_val_batches == 0:
        raise UserError(f"model.scheduler: {monitor} is not measured where trainer.limit_val_batches is 0")


def _validated(data: Any) -> list[str]:
    """What validation measures, with a callback EMA too; any data have classes that do not say otherwise."""
    if getattr(data, "num_classes", 1):
        return ["val/loss", *(score.metric for score in OF_CLASSES), f"{OF_CLASSES[0].metric}_ema"]
    names = [score.metric for score in OF_FEATURES] if data.has_val else []
    return [*names, *(f"{name}_ema" for name in names)]


def unknown_metric(monitor: str, known: Iterable[str]) -> UserError:
    """The error for a metric that nothing measures."""
    names = ", ".join(sorted(name for name in known if name != "epoch"))
    return UserError(f"model.scheduler: there is no metric {monitor} to monitor; there are {names}")
