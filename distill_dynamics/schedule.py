"""The published learning-rate schedule: linear warm-up, then a cosine, set once per epoch."""

import math
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from distill_dynamics.errors import UserError


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
