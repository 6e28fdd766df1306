"""What is done with the teacher before the first step: its images, its cache, its parts, its accuracy."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

from distill_dynamics.models.isolated import isolated
from distill_dynamics.models.sharding import shard
from distill_dynamics.teacher_cache.teacher import CachedTeacher
from distill_dynamics.train.cached import cached_teacher
from distill_dynamics.train.metrics import datamodule, measure
from distill_dynamics.train.quality import measure_features, measures_quality

if TYPE_CHECKING:
    from distill_dynamics.train.distiller import Distiller


def prepare_teacher(distiller: Distiller, data: Any, stage: str) -> None:
    """Have it take the data's images, and for training its cache read and its weights shared out."""
    teacher, trainer = distiller.teacher, distiller.trainer
    if teacher is None:
        return
    teacher.take_images_of(data)
    if stage == "fit" and distiller.teacher_cache is not None:
        cached = cached_teacher(distiller, teacher, distiller.teacher_cache)
        distiller.training_teacher = cached
        data.answers = cached.cache.answers(cached.fields) if cached.fields else None
    if stage == "fit" and teacher.sharded:
        shard(teacher.backbone, trainer.strategy.root_device, trainer.world_size)


def measure_teacher(distiller: Distiller) -> dict[str, float]:
    """Its accuracy, where terms read its logits and it is not known yet, as a row of metrics.

    Without classes it is how good its features are, where labels of validation images tell.
    """
    teacher, answering = distiller.teacher, distiller.training_teacher
    reads_logits = any(word in ("logits", "dist_logits") for word, _ in distiller.teacher_reads())
    of_features = measures_quality(datamodule(distiller.trainer))
    if teacher is None or not (reads_logits or of_features) or teacher.accuracy:
        return {}
    known = answering.accuracy if isinstance(answering, CachedTeacher) else None
    teacher.accuracy = known or measure(teacher, distiller.trainer, distiller.student.num_classes)
    return {f"teacher/{name}": value for name, value in teacher.accuracy.items()}


def measure_untrained(distiller: Distiller) -> dict[str, float]:
    """How good the features of a student without classes are before training; {} where labels lack."""
    trainer, student = distiller.trainer, distiller.student
    if distiller.saved_settings is not None or not measures_quality(datamodule(trainer)):
        return {}
    loader, limit = datamodule(trainer).val_dataloader(), trainer.limit_val_batches
    # On the images of later epochs, so that the numbers compare.
    batches = limit if isinstance(limit, int) else int(limit * len(loader))
    if batches == 0:
        return {}
    with isolated(student):
        return measure_features(distiller.pooled, islice(loader, batches), trainer, "the student")
