"""What is done with the teachers before the first step: images, caches, parts of weights, accuracy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from distill_dynamics.models.isolated import isolated
from distill_dynamics.models.save import weights_digest
from distill_dynamics.models.sharding import shard
from distill_dynamics.teacher_cache.reader import CacheReaders
from distill_dynamics.teacher_cache.teacher import CachedTeacher
from distill_dynamics.train.cached import cached_teacher
from distill_dynamics.train.metrics import datamodule, measure
from distill_dynamics.train.quality import measure_features, measures_quality

if TYPE_CHECKING:
    from distill_dynamics.train.distiller import Distiller


def prepare_teachers(distiller: Distiller, data: Any, stage: str) -> None:
    """Have each take the data's images, and for training its cache read and its weights shared out."""
    readers = []
    for name, teacher in distiller.teachers.items():
        teacher.take_images_of(data)
        if stage == "fit" and not teacher.sharded:
            teacher.digest = weights_digest(teacher.backbone.model)
        if stage == "fit" and teacher.cache is not None:
            cached = cached_teacher(distiller, teacher, teacher.cache)
            distiller.answering[name] = cached
            readers += [cached.reader()] if cached.fields else []
        if stage == "fit" and teacher.sharded:
            trainer = distiller.trainer
            device, key = trainer.strategy.root_device, teacher.key_of("shard")
            shard(teacher.backbone, device, trainer.world_size, key)
    if readers:
        data.answers = readers[0] if len(readers) == 1 else CacheReaders(readers)


def terms_to_fit(distiller: Distiller) -> dict[str, Any]:
    """The terms whose losses have not taken what they fit from a cache."""
    cached = [name for name, teacher in distiller.answering.items() if isinstance(teacher, CachedTeacher)]
    taken = {term for name in cached for term in distiller.terms_of(name)}
    terms: Any = distiller.terms.items()
    return {name: term for name, term in terms if name not in taken}


def measure_teachers(distiller: Distiller) -> dict[str, float]:
    """The accuracy of each whose logits terms read, where it is not known yet, as a row of metrics.

    Without classes it is how good its features are, where labels of validation images tell.
    """
    row: dict[str, float] = {}
    of_features = measures_quality(datamodule(distiller.trainer))
    for name, teacher in distiller.teachers.items():
        reads_logits = any(word in ("logits", "dist_logits") for word, _ in distiller.teacher_reads(name))
        if not (reads_logits or of_features) or teacher.accuracy:
            continue
        answering = distiller.answering[name]
        known = answering.accuracy if isinstance(answering, CachedTeacher) else None
        teacher.accuracy = known or measure(teacher, distiller.trainer, distiller.student.num_classes)
        row |= {f"{teacher.role}/{what}": value for what, value in teacher.accuracy.items()}
    return row


def measure_untrained(distiller: Distiller) -> dict[str, float]:
    """How good the features of a student without classes are before training; {} where labels lack."""
    trainer, student = distiller.trainer, distiller.student
    if distiller.saved_settings is not None or not measures_quality(datamodule(trainer)):
        return {}
    with isolated(student):
        return measure_features(
            distiller.pooled, datamodule(trainer).val_dataloader(), trainer, "the student"
        )
