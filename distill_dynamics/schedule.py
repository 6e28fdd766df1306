"""What changes while training: weights and temperatures by `Schedule`, the learning rate by two others.

A `Schedule` gives a number for the progress, the share of the training that is done, from 0 to 1. The rate's
are the default, for a training of any length, and the published one, by epochs.
"""

import bisect
import math
from abc import ABC, abstractmethod
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from distill_dynamics.errors import UserError


class Schedule(ABC):
    """A number for each `progress`, the share of the training that is done, from 0 to 1.

    A subclass of yours gives it by `__call__`. It is asked for the middle of each step, and should have no
    state: a resumed run asks for its own steps alone.
    """

    @abstractmethod
    def __call__(self, progress: float) -> float:
        """Give the number there."""


def sampled(value: float | Schedule) -> list[float]:
    """A number, or what a schedule gives at 17 places of the training, for a check before it begins."""
    return [value(place / 16) for place in range(17)] if callable(value) else [value]


class Linear(Schedule):
    """From `first` to `last` on a line."""

    def __init__(self, first: float, last: float) -> None:
        self.first, self.last = first, last

    def __call__(self, progress: float) -> float:
        """Give the number there."""
        return self.first + (self.last - self.first) * progress


class Cosine(Schedule):
    """From `first` to `last` on half a cosine, flat at both ends."""

    def __init__(self, first: float, last: float) -> None:
        self.first, self.last = first, last

    def __call__(self, progress: float) -> float:
        """Give the number there."""
        return self.last + (self.first - self.last) * 0.5 * (1 + math.cos(math.pi * progress))


class Steps(Schedule):
    """`values[0]` until `at[0]`, then `values[1]` until `at[1]`, and so on; one value more than places.

    `UserError` for other numbers of them, and for places that do not rise within 0 and 1.
    """

    def __init__(self, values: list[float], at: list[float]) -> None:
        if len(values) != len(at) + 1 or [*at] != sorted({*at}) or not all(0 < place < 1 for place in at):
            raise UserError(f"Steps: {len(at)} rising places within 0 and 1 part {len(at) + 1} values")
        self.values, self.at = values, at

    def __call__(self, progress: float) -> float:
        """Give the number there."""
        return self.values[bisect.bisect_right(self.at, progress)]


class Until(Schedule):
    """`value` until `start`, then half a cosine to 0 at `end`, and 0 from there on.

    `UserError` unless 0 <= start <= end <= 1.
    """

    def __init__(self, start: float, end: float, value: float = 1.0) -> None:
        if not 0 <= start <= end <= 1:
            raise UserError(
                f"{type(self).__name__}: start and end are shares of the training, 0 <= start <= end <= 1, "
                f"not {start} and {end}"
            )
        self.start, self.end, self.value = start, end, value

    def _share(self, progress: float) -> float:
        if progress < self.start:
            return 1.0
        if progress >= self.end:
            return 0.0
        return 0.5 * (1 + math.cos(math.pi * (progress - self.start) / (self.end - self.start)))

    def __call__(self, progress: float) -> float:
        """Give the number there."""
        return self.value * self._share(progress)


class From(Until):
    """The mirror of `Until`: 0 until `start`, then half a cosine to `value` at `end`, and that from there."""

    def __call__(self, progress: float) -> float:
        """Give the number there."""
        return self.value * (1 - self._share(progress))


def warmup_then_cosine(progress: float, warmup: float = 0.1, end: float = 0.01) -> float:
    """Factor of the highest rate at `progress`, the share of the training that is done, from 0 to 1.

    On the line from 0 to 1 while progress < warmup; from there half a cosine from 1 to `end`; then `end`.
    """
    if progress < warmup:
        return progress / warmup
    if progress >= 1:
        return end
    return end + 0.5 * (1 - end) * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


class ProgressCosine(LRScheduler):
    """`warmup_then_cosine` of each parameter group's own rate, at every step: for a training of any length.

    Set `.progress`, the share of the training that is done in the middle of the step that comes, and call
    `step()`. In the middle, so that no step has a rate of 0, not even the only one of a training. The rate is
    a function of the progress alone, so that a resumed run has the same one.

    Args:
        optimizer: its groups' rates are the highest that they get.
        warmup: share of the training in which the rate rises; a tenth at most.
        end: the last rate, as a share of the highest.
        last_epoch: steps made so far, as torch counts them.

    Raises:
        UserError: numbers that make no schedule.
    """

    def __init__(
        self, optimizer: Optimizer, warmup: float = 0.1, end: float = 0.01, last_epoch: int = -1
    ) -> None:
        if not 0 <= warmup <= 0.1:
            raise UserError(f"the schedule's warmup is a share of the training, 0 to 0.1, not {warmup}")
        if not 0 <= end <= 1:
            raise UserError(f"the schedule's end is a share of the highest rate, 0 to 1, not {end}")
        self.warmup = warmup
        self.end = end
        self.progress = 0.0
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[Any]:
        """Give the learning rate of every parameter group in the step that begins."""
        factor = warmup_then_cosine(self.progress, self.warmup, self.end)
        return [float(base_lr) * factor for base_lr in self.base_lrs]


def warmup_cosine(
    epoch: int,
    base_lr: float,
    epochs: int | None,
    warmup_epochs: int = 5,
    warmup_lr: float = 1e-6,
    min_lr: float = 1e-5,
) -> float:
    """Learning rate during the epoch with this number, from 0, one epoch late.

    timm's CosineLRScheduler at t = max(epoch - 1, 0), which is what DeiT's training loop gives, as it
    steps with the number of the epoch that has ended: epochs 0 and 1 train alike. With t < warmup_epochs
    the rate is on the line from warmup_lr to base_lr; then on the cosine that is base_lr at t = 0 and
    min_lr at t = epochs (the warm-up is cut out of the cosine, not put before it); then min_lr.

    `ValueError` where the cosine is reached and epochs is None.
    """
    t = max(epoch - 1, 0)
    if t < warmup_epochs:
        return warmup_lr + t * (base_lr - warmup_lr) / warmup_epochs
    if t == 0:
        return base_lr
    if epochs is None:
        raise ValueError(f"the learning rate of epoch {epoch} depends on epochs, which is not set")
    if t >= epochs:
        return min_lr
    return min_lr + 0.5 * (base_lr - min_lr) * (1 + math.cos(math.pi * t / epochs))


class WarmupCosine(LRScheduler):
    """`warmup_cosine` of each parameter group's own learning rate; step it once at the end of each epoch.

    `epochs=None` means as many as the trainer runs, which it has to be told: set `.epochs` before the
    warm-up is over. The rate is a function of the epoch alone, so that a resumed run has the same one;
    `epochs` is in the state and comes back with it.

    `UserError` for numbers that make no schedule.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        epochs: int | None = None,
        warmup_epochs: int = 5,
        warmup_lr: float = 1e-6,
        min_lr: float = 1e-5,
        last_epoch: int = -1,
    ) -> None:
        if epochs is not None and epochs < 1:
            raise UserError(f"the schedule's epochs are 1 or more, not {epochs}")
        for name, value in {"warmup_epochs": warmup_epochs, "warmup_lr": warmup_lr, "min_lr": min_lr}.items():
            if not value >= 0:
                raise UserError(f"the schedule's {name} is 0 or more, not {value}")
        self.epochs = epochs
        self.warmup_epochs = warmup_epochs
        self.warmup_lr = warmup_lr
        self.min_lr = min_lr
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[Any]:
        """Give the learning rate of every parameter group in the epoch that begins."""
        return [
            warmup_cosine(
                self.last_epoch, float(base_lr), self.epochs, self.warmup_epochs, self.warmup_lr, self.min_lr
            )
            for base_lr in self.base_lrs
        ]
