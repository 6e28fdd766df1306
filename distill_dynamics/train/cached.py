"""A run's teacher with a cache beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from distill_dynamics.models.teacher import Teacher
from distill_dynamics.teacher_cache.cache import TeacherCache
from distill_dynamics.teacher_cache.fields import Key, Part, Reader, parts_of
from distill_dynamics.teacher_cache.fitted import load_fitted
from distill_dynamics.teacher_cache.identity import identity, validated_on
from distill_dynamics.teacher_cache.teacher import CachedTeacher
from distill_dynamics.train.dry_run import outputs_on_one_image
from distill_dynamics.train.metrics import datamodule

if TYPE_CHECKING:
    from distill_dynamics.train.distiller import Distiller


def cached_teacher(distiller: Distiller, teacher: Teacher, folder: str) -> CachedTeacher:
    """Read the cache in a folder, if it is of this teacher and data. UserError where it is not."""
    trainer = distiller.trainer
    cache = TeacherCache.read(folder)
    cache.check(made_by(distiller, teacher))
    cache.check_whole()
    cache.check_some(trainer.global_rank, trainer.world_size)
    load_fitted(cache.folder, distiller.terms)
    found = CachedTeacher(teacher, cache, *readers_of(distiller))
    if cache.validated_on == validated_on(datamodule(trainer)):
        found.accuracy = cache.accuracy
    return found


def made_by(distiller: Distiller, teacher: Teacher) -> dict[str, Any]:
    """What a cache of the teacher's answers must have been made by; the data are set up for fitting."""
    precision = teacher.precision or str(distiller.trainer.precision)
    return identity(teacher.backbone, datamodule(distiller.trainer), precision)


def readers_of(distiller: Distiller) -> tuple[list[Reader], dict[Key, Part]]:
    """Every loss beside what it reads of the teacher, and the parts that it sees; runs both models once."""
    student, teacher = outputs_on_one_image(distiller, datamodule(distiller.trainer))
    readers = []
    for term in distiller.terms.values():
        for wanted in term.of_teacher():
            inputs = term.inputs[wanted.pair]
            of_student = [i for i in inputs if i.who == "student" and i.word == wanted.word]
            shape = student[of_student[0].word, of_student[0].block].shape[1:] if of_student else ()
            block = term.pairs[wanted.pair][0] if term.pairs else None
            readers.append(Reader(wanted, term[wanted.pair], block, tuple(shape)))
    return readers, parts_of(readers, teacher)
