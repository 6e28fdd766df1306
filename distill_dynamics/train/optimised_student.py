"""A student with its optimiser: groups of parameters, and a learning rate set by where training is."""

from __future__ import annotations

from typing import Any

from torch.optim.lr_scheduler import LRScheduler

from distill_dynamics.train.evaluated_student import EvaluatedStudent
from distill_dynamics.train.metrics import datamodule
from distill_dynamics.train.optimise import MakeOptimizer, Optimisation, decay_groups
from distill_dynamics.train.rate_forecast import MakeScheduler


class OptimisedStudent(EvaluatedStudent):
    """Makes its optimiser and sets the rate; what a step comes to is for a subclass to say."""

    make_optimizer: MakeOptimizer
    make_scheduler: MakeScheduler | None
    lr_images: int | None
    saved_settings: dict[str, Any] | None = None
    """Of the checkpoint that training goes on from."""

    def configure_optimizers(self) -> Any:
        """AdamW and its schedule, or what the config puts in their place; the linear rule of the rate.

        Raises UserError for a schedule that does not fit the trainer, and for an optimiser or a schedule that
        does not follow from that of the checkpoint the run goes on from.
        """
        groups = decay_groups(self, {f"student.{name}" for name in self.student.no_weight_decay()})
        factor = 1.0 if self.lr_images is None else self.global_batch / self.lr_images
        self.optimisation = Optimisation(
            self.make_optimizer, groups, factor, self.make_scheduler, self.trainer, self.saved_settings
        )
        return self.optimisation.for_lightning()

    @property
    def global_batch(self) -> int:
        """Images a step of the optimiser: batch × devices × accumulated batches."""
        trainer = self.trainer
        return datamodule(trainer).batch_size * trainer.world_size * trainer.accumulate_grad_batches

    def on_train_epoch_start(self) -> None:
        """Set this epoch's learning rate."""
        self.optimisation.begin_epoch()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Set this step's learning rate, where the schedule has one for each."""
        self.optimisation.begin_step(batch_idx)

    def lr_scheduler_step(self, scheduler: LRScheduler, metric: Any) -> None:
        """Leave the schedule alone: `Optimisation` steps it."""
