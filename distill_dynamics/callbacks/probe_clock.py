"""The clock that the probe and what measures beside it share, and the axis on which they log."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from io import BytesIO
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from matplotlib.figure import Figure
from PIL import Image

from distill_dynamics.train.distiller import Distiller
from distill_dynamics.train.run_logger import log_row


class AtProbes(Callback, ABC):
    """Measures at epoch 0, every `period` epochs and at the last, also of a run that was stopped early."""

    period = 0
    """Epochs; 0 where there is nothing to measure. To be set before training starts."""
    _measured: int | None = None  # the latest epoch that was, on every rank

    @abstractmethod
    def measure(self, trainer: Trainer, pl_module: Distiller, epoch: int) -> None:
        """Measure and log; called on every rank."""

    def on_train_start(self, trainer: Trainer, pl_module: Distiller) -> None:
        """Measure at epoch 0, unless the run goes on."""
        if trainer.global_step == 0:
            self._measure(trainer, pl_module, 0)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Distiller) -> None:
        """Measure if this epoch is due."""
        epoch = trainer.current_epoch + 1
        if self.period and (epoch % self.period == 0 or epoch == trainer.max_epochs):
            self._measure(trainer, pl_module, epoch)

    def on_train_end(self, trainer: Trainer, pl_module: Distiller) -> None:
        """Measure at the last epoch of a run that was stopped early."""
        if self._measured != trainer.current_epoch:
            self._measure(trainer, pl_module, trainer.current_epoch)

    def _measure(self, trainer: Trainer, pl_module: Distiller, epoch: int) -> None:
        if self.period:
            self._measured = epoch
            self.measure(trainer, pl_module, epoch)

    @rank_zero_only
    def log_probe(
        self,
        trainer: Trainer,
        epoch: int,
        metrics: Mapping[str, float],
        figures: Mapping[str, Figure] | None = None,
    ) -> None:
        """Numbers to every logger, figures to W&B, on the axis dynamics/epoch."""
        for logger in trainer.loggers:
            row: dict[str, Any] = {"dynamics/epoch": epoch, **metrics}
            if isinstance(logger, WandbLogger):
                row |= wandb_images(figures or {})
            log_row([logger], epoch, row, trainer.global_step)


def wandb_images(figures: Mapping[str, Figure]) -> dict[str, Any]:
    """Figures as W&B logs them, by the names of its panels."""
    import wandb

    return {f"dynamics/{name}": wandb.Image(_image(figure)) for name, figure in figures.items()}


def _image(figure: Figure) -> Image.Image:
    """A figure with two pixels for one of a panel's, as many screens have them, in 256 colours.

    A figure has few hues: a file is a third of what it is in all colours, and no eye tells.
    """
    file = BytesIO()
    figure.savefig(file, dpi=200)
    return Image.open(file).convert("RGB").quantize(256)
