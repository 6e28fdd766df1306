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
    step = batch_idx // trainer.accumulate_grad_batches
    return _progress(trainer, trainer.current_epoch, step, trainer.global_step)


def progress_of_steps(trainer: Trainer) -> list[float]:
    """`progress_at` of each step of the whole training; none where it is not known how many there are."""
    ends = [trainer.max_steps] if trainer.max_steps > 0 else []
    an_epoch = 0
    if trainer.max_epochs is not None and trainer.max_epochs > 0:
        if not math.isfinite(trainer.num_training_batches):
            return []
        an_epoch = steps_an_epoch(trainer)
        ends.append(trainer.max_epochs * an_epoch)
    places = (divmod(step, an_epoch) if an_epoch else (0, step) for step in range(min(ends, default=0)))
    return [_progress(trainer, *place, step) for step, place in enumerate(places)]


def _progress(trainer: Trainer, epoch: int, step_of_epoch: int, step: int) -> float:
    progress = 0.0
    if trainer.max_epochs is not None and trainer.max_epochs > 0:
        within = 0.0
        if math.isfinite(trainer.num_training_batches):
            within = (step_of_epoch + 0.5) / steps_an_epoch(trainer)
        progress = (epoch + within) / trainer.max_epochs
    if trainer.max_steps > 0:
        progress = max(progress, (step + 0.5) / trainer.max_steps)
    return min(progress, 1.0)


def progress_after(trainer: Trainer, epoch: int) -> float:
    """The share that is done after so many epochs, for what is measured between two."""
    progress = epoch / trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else 0.0
    if trainer.max_steps > 0:
        progress = max(progress, trainer.global_step / trainer.max_steps)
    return min(progress, 1.0)
