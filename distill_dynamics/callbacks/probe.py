"""Watch the representations: profile student and teacher on fixed images while training goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed
from lightning.pytorch import Trainer
from matplotlib.figure import Figure
from torch import Tensor

from distill_dynamics import figures
from distill_dynamics.callbacks.probe_clock import AtProbes, wandb_images
from distill_dynamics.data import ProbeSet
from distill_dynamics.dynamics import Profile, profile_model
from distill_dynamics.dynamics.profiler import RangeMode, compare_models
from distill_dynamics.dynamics.signature import evolution, gap, numbers, scalars
from distill_dynamics.dynamics.statistics import SHOWN
from distill_dynamics.errors import UserError
from distill_dynamics.models.backbone import Backbone
from distill_dynamics.models.input_size import of_side, teacher_side
from distill_dynamics.models.sharding import is_sharded
from distill_dynamics.models.teacher import Teacher
from distill_dynamics.runs.profiles import RunProfiles, load_profiles, until_epoch
from distill_dynamics.train.checkpoints import best_checkpoint, read_best
from distill_dynamics.train.distiller import Distiller
from distill_dynamics.train.metrics import datamodule
from distill_dynamics.train.run_logger import log_row
from distill_dynamics.train.wandb_rows import wandb_loggers_of


class DynamicsProbe(AtProbes):
    """Profiles the student on a fixed, class-balanced set of validation images, and each teacher once.

    Without validation images they are training images. A teacher of another image size sees the same images,
    made at its own; its Profile has the `probe_id` of the student's all the same.

    Before training (epoch 0), every `every_n_epochs`, at the last epoch, and at the end for the
    checkpoint with the best top-1. Each Profile is a file in the run directory's `dynamics/`; the
    curves by block (`dynamics/statistics.py`) go to every logger, with what they say (`dynamics/signature/`)
    of the student, of its gap to the teacher and of its change over epochs, and figures to W&B. Each
    Profile of a student has its blocks beside the teacher's, too (`Profile.pairs`, of the first `batch_size`
    images), for which the teacher sees the images again. The teacher's has the floors at the student's width,
    the channels of its last block: earlier stages of a student, where they have fewer, hold less. Of several
    teachers the student is compared with the first. Training is not touched: weights, generators, flags and
    gradients are afterwards what they were.

    Under DDP each rank profiles its share of the images; a sharded teacher, which all ranks must call
    equally often, profiles all of them on each.

    Args:
        every_n_epochs: 0 turns probing off.
        n_images: how many, drawn from the validation set; the counts a class differ by one at most.
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
        self._of_teachers: dict[str, ProbeSet] = {}  # by role, each at its teacher's size
        self._folder: Path

    def on_fit_start(self, trainer: Trainer, pl_module: Distiller) -> None:
        """Draw the images."""
        self.period = self.every_n_epochs if pl_module.student.layers else 0
        if self.period:
            self._folder = Path(trainer.default_root_dir) / "dynamics"
            data = datamodule(trainer)
            self.probe_set = data.probe_set(self.n_images, self.seed)
            self._of_teachers = {}
            for teacher in _watched_teachers(pl_module):
                size = of_side(data, teacher_side(teacher.backbone, data))
                drawn = data.probe_set(self.n_images, self.seed, **size) if size else self.probe_set
                self._of_teachers[teacher.role] = drawn

    def on_train_start(self, trainer: Trainer, pl_module: Distiller) -> None:
        """Profile the teachers, and the student at epoch 0."""
        begins = self.period and trainer.global_step == 0
        width = pl_module.student.channels[-1] if begins else None
        for teacher in _watched_teachers(pl_module) if begins else ():
            probe_set = self._of_teachers[teacher.role]
            profile = self._profile(trainer, teacher.backbone, probe_set, None, width=width)
            self._write(trainer, profile, teacher.role)
            drawn = wandb_loggers_of(trainer)
            spectra = {f"{teacher.role}_spectra": figures.spectra(profile)} if drawn else {}
            self.log_probe(trainer, 0, _scalars(teacher.role, profile), spectra)
        super().on_train_start(trainer, pl_module)

    def measure(self, trainer: Trainer, pl_module: Distiller, epoch: int) -> None:
        """Profile the student, beside the teacher."""
        first = _first_watched(pl_module)
        profile = self._profile(trainer, pl_module.student, self.probe_set, epoch, beside=first)
        self._write(trainer, profile, f"student_epoch_{epoch:04d}")
        if trainer.is_global_zero:
            profiles = until_epoch(load_profiles(self._folder), epoch)
            metrics = _scalars("student", profile) | _named("evolution", evolution(profiles.students))
            if profiles.teacher is not None:
                metrics |= _named("gap", gap(profile, profiles.teacher))
            self.log_probe(trainer, epoch, metrics, _pictures(trainer, profiles, epoch))

    def on_fit_end(self, trainer: Trainer, pl_module: Distiller) -> None:
        """Profile the best student, and give W&B the figures with it in them."""
        best = best_checkpoint(trainer)
        if not self.period or best is None:
            return
        student = Backbone(checkpoint=best.best_model_path).to(trainer.strategy.root_device)
        epoch, first = read_best(best)[0], _first_watched(pl_module)
        profile = self._profile(trainer, student, self.probe_set, epoch, beside=first)
        self._write(trainer, profile, "student_best")
        loggers = wandb_loggers_of(trainer)
        if trainer.is_global_zero and loggers:
            epoch = trainer.current_epoch
            drawn = _pictures(trainer, until_epoch(load_profiles(self._folder), epoch), epoch)
            row = {"dynamics/epoch": epoch, **wandb_images(drawn)}
            log_row(loggers, epoch, row, trainer.global_step)

    def _profile(
        self,
        trainer: Trainer,
        backbone: Backbone,
        probe_set: ProbeSet,
        epoch: int | None,
        beside: Backbone | None = None,
        width: int | None = None,
    ) -> Profile:
        """A Profile of all the images; with what is measured of its layers and those of `beside` together.

        `width` is a student's, at which a teacher's floors are measured.
        """
        images, group = self._share(trainer, backbone, probe_set)
        profile = profile_model(
            backbone,
            images,
            value_range=self.value_range,
            batch_size=self.batch_size,
            student_width=width,
            epoch=epoch,
            probe_id=self.probe_set.probe_id,
            probe_indices=self.probe_set.indices,
            group=group,
        )
        if beside is not None:
            images, _ = self._share(trainer, backbone, probe_set, alone=is_sharded(beside))
            theirs, group = self._share(trainer, beside, self._of_teachers["teacher"])
            profile.pairs = compare_models(
                backbone, beside, images, theirs, most=self.batch_size, group=group
            )
        return profile

    def _share(
        self, trainer: Trainer, backbone: Backbone, probe_set: ProbeSet, alone: bool = False
    ) -> tuple[Tensor, torch.distributed.ProcessGroup | None]:
        """This rank's images, normalised for a model, and the ranks that have the others.

        All images, and no other ranks, where each rank does all of the work: `alone`, or for a sharded model.
        """
        images = probe_set.normalised(backbone.mean, backbone.std)
        ranks = trainer.world_size if torch.distributed.is_initialized() else 1
        if ranks == 1 or alone or is_sharded(backbone):
            return images, None
        return images[trainer.global_rank :: ranks], torch.distributed.group.WORLD

    def _write(self, trainer: Trainer, profile: Profile, stem: str) -> None:
        if trainer.is_global_zero:
            profile.save(self._folder / f"{stem}.npz")


def _watched_teachers(pl_module: Distiller) -> list[Teacher]:
    return [teacher for teacher in pl_module.teachers.values() if teacher.backbone.layers]


def _first_watched(pl_module: Distiller) -> Backbone | None:
    """The first teacher, with which the student is compared, if it can be watched."""
    teacher = pl_module.teacher
    return teacher.backbone if teacher is not None and teacher.backbone.layers else None


def _scalars(role: str, profile: Profile) -> dict[str, float]:
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


def _pictures(trainer: Trainer, profiles: RunProfiles, epoch: int) -> dict[str, Figure]:
    """What W&B gets to see after so many epochs: of the teacher alone, once."""
    if not wandb_loggers_of(trainer):
        return {}
    drawn = figures.run_figures(*profiles[:3])
    return drawn if epoch == 0 else {n: f for n, f in drawn.items() if n != "floors_by_block"}
