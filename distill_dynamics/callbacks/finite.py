"""A loss or weights that are no numbers end the run before they are saved."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from distill_dynamics.errors import UserError
from distill_dynamics.train.checkpoints import last_checkpoint

if TYPE_CHECKING:
    from distill_dynamics.train.distiller import Distiller

_NEVER = torch.iinfo(torch.int64).max
"""The step in which nothing happened that has not happened."""


class FiniteLoss(Callback):
    """Raises UserError, on every rank, where a part of the loss was not finite on any of them.

    To look is to wait, for a GPU or other ranks: it is done every `log_every_n_steps`, before validation,
    and before a checkpoint is saved. One process on a CPU looks at every step, before the weights change.
    """

    def __init__(self) -> None:
        self._first_bad: Tensor | None = None
        self._names: list[str] = []

    def on_train_start(self, trainer: Trainer, pl_module: Distiller) -> None:
        """Forget an earlier training."""
        self._first_bad = None

    def on_before_backward(self, trainer: Trainer, pl_module: Distiller, loss: Tensor) -> None:
        """Note the first step in which each value was not finite, without waiting for a GPU to say so."""
        step = pl_module.latest
        self._names = step.names
        bad = torch.where(step.values.isfinite(), _NEVER, trainer.global_step + 1)
        self._first_bad = bad if self._first_bad is None else torch.minimum(self._first_bad, bad)
        if self._is_due(trainer, pl_module, step.batch_idx):
            self._check_values(trainer)

    def _is_due(self, trainer: Any, pl_module: Distiller, batch_idx: int) -> bool:
        due = trainer.is_last_batch or (batch_idx + 1) % trainer.log_every_n_steps == 0
        return due or (pl_module.device.type == "cpu" and trainer.world_size == 1)

    def check(self, trainer: Trainer, pl_module: Distiller) -> None:
        """Raise UserError for weights that are not finite, or that met such a loss: before they are saved."""
        self._check_values(trainer)
        if not torch.stack([parameter.isfinite().all() for parameter in pl_module.parameters()]).all():
            what = f"what step {trainer.global_step} made of the weights"
            raise _not_finite(trainer, what, "NaN or infinity")

    def _check_values(self, trainer: Trainer) -> None:
        if self._first_bad is None:
            return
        found: Any = trainer.strategy.reduce(self._first_bad.clone(), reduce_op="min")
        steps = found.tolist()
        if (step := min(steps)) < _NEVER:
            bad = [name for name, first in zip(self._names, steps[1:], strict=True) if first == step]
            which = ", ".join(bad) or "the weighted sum of its parts"
            raise _not_finite(trainer, f"the loss at step {step}", which)


def _not_finite(trainer: Trainer, what: str, which: str) -> UserError:
    last = last_checkpoint(trainer)
    kept = (
        f"the last good checkpoint is {last}" if last and last.exists() else "no checkpoint was written yet"
    )
    return UserError(
        f"{what} (epoch {trainer.current_epoch + 1}) is not finite: {which}. Nothing was saved since, "
        f"and {kept}. What may help: a lower learning rate or a longer warm-up, a smaller weight of the "
        "term, trainer.gradient_clip_val, precision bf16-mixed in the place of 16-mixed"
    )
