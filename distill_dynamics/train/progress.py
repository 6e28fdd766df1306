"""How much of the training is done."""

from __future__ import annotations

import math

from lightning.pytorch import Trainer


def steps_an_epoch(trainer: Trainer) -> int:
    """Of the optimiser, where the data tell how many batches there are."""
    return math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)


def progress_at(trainer: Trainer, batch_idx: int) -> float:
    """The share of the training that is done, 0 to 1, in the middle of the step that a batch belongs to.

    It is counted in epochs, or in the steps of `max_steps` where these end it first: a run that goes on with
    other batches keeps its place. 0 for a training without end.
    """
    progress = 0.0
    if trainer.max_epochs is not None and trainer.max_epochs > 0:
        within = 0.0
        if math.isfinite(trainer.num_training_batches):
            within = (batch_idx // trainer.accumulate_grad_batches + 0.5) / steps_an_epoch(trainer)
        progress = (trainer.current_epoch + within) / trainer.max_epochs
    if trainer.max_steps > 0:
        progress = max(progress, (trainer.global_step + 0.5) / trainer.max_steps)
    return min(progress, 1.0)


def progress_after(trainer: Trainer, epoch: int) -> float:
    """The share that is done after so many epochs, for what is measured between two."""
    progress = epoch / trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else 0.0
    if trainer.max_steps > 0:
        progress = max(progress, trainer.global_step / trainer.max_steps)
    return min(progress, 1.0)
