"""A student as it is measured: forward, validation, prediction, with its teacher beside it.

Legend of letters: B batch, C channels, H W grid, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn

from distill_dynamics.data.batches import IGNORED
from distill_dynamics.models.backbone import Backbone
from distill_dynamics.models.features import LOGITS, POOLED, read
from distill_dynamics.models.input_size import of_side, teacher_side, views_side
from distill_dynamics.models.normalise import Renormalise
from distill_dynamics.models.teacher import Teacher
from distill_dynamics.train.metrics import WeightedMean, accuracies, datamodule, measure
from distill_dynamics.train.quality import FeatureQuality, measures_quality, quality_of


class EvaluatedStudent(LightningModule):
    """A student that is validated, tested and asked for predictions; `Distiller` trains it."""

    student: Backbone
    teachers: dict[str, Teacher]
    """By name, in the order of the config."""

    def __init__(
        self, student: Backbone, teachers: Mapping[str, Teacher], channels_last: bool = False
    ) -> None:
        super().__init__()
        self.student = student
        # No modules: nothing that walks the tree (state_dict, train(), DDP, an EMA copy) meets them.
        self.teachers = {**teachers}
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.renormalise: Callable[[Tensor], Tensor] = Renormalise.nothing
        self.val_metrics = accuracies(student.num_classes)
        roles = [teacher.role for teacher in teachers.values()]
        self.teacher_metrics = nn.ModuleDict({role: accuracies(student.num_classes) for role in roles})
        self.teacher_quality = nn.ModuleDict({role: FeatureQuality() for role in roles})
        self.val_loss = WeightedMean()
        self.val_quality = FeatureQuality()

    @property
    def teacher(self) -> Teacher | None:
        """The first, with which the student is compared."""
        return next(iter(self.teachers.values()), None)

    def forward(self, images: Tensor) -> Tensor:
        """Student logits [B, K] for a batch as the DataModule gives it, [B, C, H, W].

        Without a Trainer there is no DataModule: images are then normalised for the student.
        """
        return read(self.student, self.for_student(images), {LOGITS})[LOGITS]

    def take_images_of(self, data: Any) -> None:
        """Have batches as `data` makes them be what is given from here on: of its normalisation and size."""
        own, side = self.student, data.image_size
        resizes = views_side(data) != side
        self.renormalise = Renormalise(data.mean, data.std, own.mean, own.std, side if resizes else None)

    def for_student(self, images: Tensor) -> Tensor:
        """A batch as the DataModule gives it, resized, normalised and laid out as the student takes it."""
        return self.renormalise(images).contiguous(memory_format=self.memory_format)

    def pooled(self, images: Tensor) -> Tensor:
        """Features of the student [B, D], of a batch as the DataModule gives it."""
        return read(self.student, self.for_student(images), {POOLED})[POOLED]

    def validation_step(self, batch: tuple[Any, ...], batch_idx: int) -> None:
        """Top-1, top-5 and plain cross-entropy of the student; padding items count nowhere.

        Of a student without classes the pooled features are gathered, where the images have labels.
        """
        images, targets, *known = batch
        if self.student.num_classes == 0:
            if measures_quality(datamodule(self.trainer)):
                self._gather(images, targets, known[0]["index"])
            return
        logits = self(images)
        self.val_metrics.update(logits, targets)
        counted = (targets != IGNORED).sum()
        loss = F.cross_entropy(logits.float(), targets, ignore_index=IGNORED, reduction="sum")
        self.val_loss.update(loss / counted.clamp(min=1), weight=counted)
        for teacher in self._measured_beside():
            if self._sees_the_same(teacher):
                metrics: Any = self.teacher_metrics[teacher.role]
                metrics.update(teacher.logits(images), targets)

    test_step = validation_step

    def _gather(self, images: Tensor, targets: Tensor, places: Tensor) -> None:
        self.val_quality.update(self.pooled(images), targets, places)
        for teacher in self._measured_beside():
            if self._sees_the_same(teacher):
                quality: Any = self.teacher_quality[teacher.role]
                quality.update(teacher.pooled(images), targets, places)

    def _measured_beside(self) -> list[Teacher]:
        """The teachers that are measured beside the student, when no training goes on."""
        if self.trainer.state.fn == "fit":
            return []
        classes, teachers = self.student.num_classes, self.teachers.values()
        return [t for t in teachers if classes in (0, t.backbone.num_classes) and not t.sharded]

    def _sees_the_same(self, teacher: Teacher) -> bool:
        """Whether that is on the student's batches, which have its size."""
        data = datamodule(self.trainer)
        return not of_side(data, teacher_side(teacher.backbone, data))

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> tuple[Tensor, Tensor]:
        """Class probabilities [B, K] and targets [B]."""
        images, targets = batch
        return self(images).softmax(dim=1), targets

    def on_validation_epoch_end(self) -> None:
        """Publish `val/*`; in `fit` the epoch's row has it."""
        self._publish("val")

    def on_test_epoch_end(self) -> None:
        """Publish `test/*`."""
        self._publish("test")

    def _publish_quality(self, split: str) -> None:
        trainer = self.trainer
        if not measures_quality(datamodule(trainer)):
            return
        found = {split: quality_of(self.val_quality, trainer, "the student")}
        for teacher in self._measured_beside():
            quality: Any = self.teacher_quality[teacher.role]
            found[teacher.role] = (
                quality_of(quality, trainer, f"the {teacher.title}")
                if self._sees_the_same(teacher)
                else measure(teacher, trainer, 0)
            )
        for whose, values in found.items():
            for name, value in values.items():
                bar = name == "knn1" and whose == split
                self.log(f"{whose}/{name}", value, prog_bar=bar, logger=trainer.state.fn != "fit")

    def _publish(self, split: str) -> None:
        if self.student.num_classes == 0:
            self._publish_quality(split)
            return
        values = {**self.val_metrics.compute(), "loss": self.val_loss.compute()}
        if not values["loss"].isfinite():
            rank_zero_warn(f"{split}/loss is {values['loss']:g}: the student's logits are not all finite")
        self.val_metrics.reset()
        self.val_loss.reset()
        fitting = self.trainer.state.fn == "fit"
        for teacher in self._measured_beside():
            metrics: Any = self.teacher_metrics[teacher.role]
            found: Any = (
                metrics.compute()
                if self._sees_the_same(teacher)
                else measure(teacher, self.trainer, self.student.num_classes)
            )
            for name, value in found.items():
                self.log(f"{teacher.role}/{name}", value)
            metrics.reset()
        for name, value in values.items():
            self.log(f"{split}/{name}", value, prog_bar=name == "acc1", logger=not fitting)

    def _apply(self, fn: Callable, *args: Any, **kwargs: Any) -> EvaluatedStudent:
        """Moves to a device or dtype take the teachers along, though they are no submodules."""
        for teacher in self.__dict__.get("teachers", {}).values():
            teacher.move(fn)
        return super()._apply(fn, *args, **kwargs)
