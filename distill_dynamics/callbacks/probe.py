"""Watch the representations: profile student and teacher on fixed images while training goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from matplotlib.figure import Figure

from distill_dynamics import figures
from distill_dynamics.callbacks.record import best_checkpoint, read_best
from distill_dynamics.data import ProbeSet
from distill_dynamics.dynamics import Profile, profile_model
from distill_dynamics.dynamics.profiler import RangeMode, compare_models
from distill_dynamics.dynamics.signature import evolution, gap, numbers, scalars
from distill_dynamics.dynamics.statistics import SHOWN
from distill_dynamics.errors import UserError
from distill_dynamics.models.backbone import Backbone
from distill_dynamics.models.sharding import is_sharded
from distill_dynamics.runs.profiles import load_profiles, up_to
from distill_dynamics.train.distiller import Distiller
from distill_dynamics.train.metrics import datamodule
from distill_dynamics.train.run_logger import log_row


class DynamicsProbe(Callback):
    """Profiles the student on a fixed, class-balanced set of validation images, and the teacher once.

    Before training (epoch 0), every `every_n_epochs`, at the last epoch, and at the end for the
    checkpoint with the best top-1. Each Profile is a file in the run directory's `dynamics/`; the
    curves by block (`dynamics/statistics.py`) go to every logger, with what they say (`dynamics/signature/`)
    of the student, of its gap to the teacher and of its change over epochs, and figures to W&B. Training is
    not touched: weights, generators, flags and gradients are afterwards what they were.

    Under DDP each rank profiles its share of the images; a sharded teacher, which all ranks must call
    equally often, profiles all of them on each.

    Args:
        every_n_epochs: 0 turns probing off.
        n_images: how many, drawn from the validation set; counts a class differ by one at most.
        seed: of the draw. It is not the run's: runs with other seeds look at the same images.
        value_range: bins of the entropy: "global" (the paper's, over all layers), "layer", "scaled" or two
            numbers; see `profile_model`.
        batch_size: images a forward pass.
    """

    def __init__(
        self,
        every_n_epochs: int = 30,
        n_images: int = 32,
        seed: int = 0,
        value_range: RangeMode | tuple[float, float] = "global",
        batch_size: int = 32,
    ) -> None:
        if every_n_epochs < 0 or n_images < 1 or batch_size < 1:
            raise UserError("probe: every_n_epochs is 0 or more, n_images and batch_size are 1 or more")
        self.every_n_epochs = every_n_epochs
        self.n_images = n_images
        self.seed = seed
        self.value_range = value_range
        self.batch_size = batch_size
        self.probe_set: ProbeSet
        self._folder: Path
        self._probed: int | None = None  # the latest epoch that was, on every rank

    def on_fit_start(self, trainer: Trainer, pl_module: Distiller) -> None:
        """Draw the images."""
        if self._active(pl_module):
            self._folder = Path(trainer.default_root_dir) / "dynamics"
            self.probe_set = datamodule(trainer).probe_set(self.n_images, self.seed)

    def on_train_start(self, trainer: Trainer, pl_module: Distiller) -> None:
        """Profile the teacher, and the student at epoch 0."""
        if not self._active(pl_module) or trainer.global_step > 0:
            return
        if pl_module.teacher is not None and pl_module.teacher.backbone.layers:
            teacher = self._profile(trainer, pl_module.teacher.backbone, None)
            self._write(trainer, teacher, "teacher")
            pictures = {"teacher_spectra": figures.spectra(teacher)}
            self._log(trainer, 0, _measures("teacher", teacher), pictures)
        self._probe_student(trainer, pl_module, 0)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Distiller) -> None:
        """Profile the student if this epoch is due."""
        epoch = trainer.current_epoch + 1
        due = self.every_n_epochs and (epoch % self.every_n_epochs == 0 or epoch == trainer.max_epochs)
        if due and self._active(pl_module):
            self._probe_student(trainer, pl_module, epoch)

    def on_train_end(self, trainer: Trainer, pl_module: Distiller) -> None:
        """Profile the last epoch of a run that was stopped early."""
        epoch = trainer.current_epoch
        if self._active(pl_module) and self._probed != epoch:
            self._probe_student(trainer, pl_module, epoch)

    def on_fit_end(self, trainer: Trainer, pl_module: Distiller) -> None:
        """Profile the best student, and give W&B the figures with it in them."""
        best = best_checkpoint(trainer)
        if not self._active(pl_module) or best is None:
            return
        student = Backbone(checkpoint=best.best_model_path).to(trainer.strategy.root_device)
        best_profile = self._profile(trainer, student, read_best(best)[0])
        self._compare(trainer, pl_module, student, best_profile)
        self._write(trainer, best_profile, "student_best")
        if trainer.is_global_zero:
            for logger in _wandb(trainer):
                drawn = figures.of_run(*up_to(load_profiles(self._folder), trainer.current_epoch))
                logger.log_metrics(_pictures(drawn), step=trainer.global_step)

    def _active(self, pl_module: Distiller) -> bool:
        return self.every_n_epochs > 0 and bool(pl_module.student.layers)

    def _probe_student(self, trainer: Trainer, pl_module: Distiller, epoch: int) -> None:
        profile = self._profile(trainer, pl_module.student, epoch)
        self._compare(trainer, pl_module, pl_module.student, profile)
        self._probed = epoch
        self._write(trainer, profile, f"student_epoch_{epoch:04d}")
        if trainer.is_global_zero:
            profiles = up_to(load_profiles(self._folder), epoch)
            metrics = _measures("student", profile) | _named("evolution", evolution(profiles.students))
            if profiles.teacher is not None:
                metrics |= _named("gap", gap(profile, profiles.teacher))
            self._log(trainer, epoch, metrics, figures.of_run(*profiles) if _wandb(trainer) else {})

    def _profile(self, trainer: Trainer, backbone: Backbone, epoch: int | None) -> Profile:
        group = self._group(trainer, backbone)
        images = self.probe_set.normalised(backbone.mean, backbone.std)
        return profile_model(
            backbone,
            images[trainer.global_rank :: trainer.world_size] if group else images,
            value_range=self.value_range,
            batch_size=self.batch_size,
            epoch=epoch,
            probe_id=self.probe_set.probe_id,
            probe_indices=self.probe_set.indices,
            group=group,
        )

    def _compare(self, trainer: Trainer, pl_module: Distiller, student: Backbone, profile: Profile) -> None:
        """Add to the student's Profile what is measured of its blocks and the teacher's together."""
        if pl_module.teacher is None or not pl_module.teacher.backbone.layers:
            return
        teacher = pl_module.teacher.backbone
        group = self._group(trainer, teacher)
        images = [self.probe_set.normalised(model.mean, model.std) for model in (student, teacher)]
        if group is not None:
            images = [some[trainer.global_rank :: trainer.world_size] for some in images]
        profile.pairs = compare_models(student, teacher, *images, most=self.batch_size, group=group)

    def _group(self, trainer: Trainer, backbone: Backbone) -> torch.distributed.ProcessGroup | None:
        """The ranks that share the images out; None where each has all of them."""
        shared = torch.distributed.is_initialized() and trainer.world_size > 1 and not is_sharded(backbone)
        return torch.distributed.group.WORLD if shared else None

    def _write(self, trainer: Trainer, profile: Profile, stem: str) -> None:
        if trainer.is_global_zero:
            profile.save(self._folder / f"{stem}.npz")

    @rank_zero_only
    def _log(self, trainer: Trainer, epoch: int, metrics: dict[str, float], drawn: dict[str, Figure]) -> None:
        """Scalars to every logger, on the axis dynamics/epoch; pictures to W&B."""
        for board in _wandb(trainer):
            for name in metrics:
                board.experiment.define_metric(name, step_metric="dynamics/epoch")
        for logger in trainer.loggers:
            pictures = _pictures(drawn) if isinstance(logger, WandbLogger) else {}
            row = {"dynamics/epoch": epoch, **metrics, **pictures}
            log_row([logger], epoch, row, trainer.global_step)


def _measures(role: str, profile: Profile) -> dict[str, float]:
    """One scalar a block and statistic, where it is known, and what the curves say."""
    blocks = {
        f"dynamics/{role}/{curve.name}/block_{block:02d}": float(value)
        for curve in SHOWN
        for block, value in enumerate(profile.curve(curve.name), start=1)
        if np.isfinite(value)
    }
    said = {f"dynamics/{role}/signature/{name}": value for name, value in scalars(profile).items()}
    return blocks | said


def _named(kind: str, found: Any) -> dict[str, float]:
    return {f"dynamics/{kind}/{name}": value for name, value in numbers(found).items()}


def _wandb(trainer: Trainer) -> list[WandbLogger]:
    return [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]


def _pictures(drawn: dict[str, Figure]) -> dict[str, Any]:
    import wandb

    return {f"dynamics/{name}": wandb.Image(figure) for name, figure in drawn.items()}
