"""A run's teacher with a cache beside it."""

from __future__ import annotations

from contextlib import suppress
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from distill_dynamics.errors import UserError, at
from distill_dynamics.models.features import Read
from distill_dynamics.models.teacher import Teacher
from distill_dynamics.teacher_cache.cache import TeacherCache
from distill_dynamics.teacher_cache.fields import (
    LOGITS,
    Key,
    Part,
    Reader,
    check_shapes,
    part_of,
    parts_of,
)
from distill_dynamics.teacher_cache.fitted import load_fitted
from distill_dynamics.teacher_cache.identity import identity
from distill_dynamics.teacher_cache.teacher import CachedTeacher
from distill_dynamics.train.dry_run import student_outputs, teacher_outputs
from distill_dynamics.train.metrics import datamodule
from distill_dynamics.train.reference_images import depend_on
from distill_dynamics.train.step import keyed_draws

if TYPE_CHECKING:
    from distill_dynamics.train.distiller import Distiller
    from distill_dynamics.train.terms import BoundTerm


def cached_teacher(distiller: Distiller, teacher: Teacher, folder: str) -> CachedTeacher:
    """Read the cache in a folder, if it is of this teacher and data. UserError where it is not."""
    trainer, key = distiller.trainer, teacher.key_of("cache")
    with at(key):
        cache = TeacherCache.read(folder)
        cache.check_identity(made_by(distiller, teacher))
        cache.check_finished()
        cache.check_samples(trainer.global_rank, trainer.world_size)
        load_fitted(cache.folder, distiller.terms_of(teacher.name), depend_on(datamodule(trainer)))
    readers, parts = readers_of(distiller, teacher.name)
    with at(key):
        check_shapes(cache.folder, readers, parts, cache.layout.fields)
        found = CachedTeacher(teacher, cache, readers, parts)
    # Of one with classes it is another measure than of one without.
    without = datamodule(trainer).num_classes == 0
    if cache.validated_on == distiller.validated_on and ("knn1" in cache.accuracy) == without:
        found.accuracy = cache.accuracy
    return found


def made_by(distiller: Distiller, teacher: Teacher) -> dict[str, Any]:
    """What a cache of the teacher's answers must have been made by; the data are set up for fitting."""
    precision = teacher.precision or str(distiller.trainer.precision)
    return identity(teacher.backbone, datamodule(distiller.trainer), precision)


def readers_of(distiller: Distiller, name: str) -> tuple[list[Reader], dict[Key, Part]]:
    """Every loss beside what it reads of a teacher, and the parts that it sees; runs both models once."""
    data = datamodule(distiller.trainer)
    student, teacher = student_outputs(distiller, data), teacher_outputs(distiller, name, data)
    readers = []
    terms = distiller.terms_of(name)
    for term in terms.values():
        for wanted in term.of_teacher():
            inputs = term.inputs[wanted.pair]
            of_student = [i for i in inputs if i.who == "student" and i.word == wanted.word]
            shape = student[of_student[0].word, of_student[0].block].shape[1:] if of_student else ()
            block = term.pairs[wanted.pair][0] if term.pairs else None
            readers.append(Reader(wanted, term[wanted.pair], block, tuple(shape)))
    for term in terms.values():
        _check_parts(term, readers, _drawn(student), _drawn(teacher))
    return readers, parts_of(readers, teacher)


@torch.no_grad()
def _check_parts(
    term: BoundTerm, readers: list[Reader], student: dict[Read, Tensor], teacher: dict[Read, Tensor]
) -> None:
    """UserError for a term that is another where its losses get what a cache gives in the whole's place.

    That is the `cacheable` part, and logits up to a number for each image.
    """
    whole = {(w.term, w.pair, w.word): teacher[w.word, w.block] for w in term.of_teacher()}
    part = dict(whole)
    for reader in readers:
        if reader.wanted.term == term.name and reader.wanted.word in LOGITS:
            part[reader.key] = whole[reader.key].log_softmax(dim=1)  # they are stored up to a number
        elif reader.wanted.term == term.name and reader.narrows:
            part[reader.key] = part_of(reader, whole[reader.key])
    images = len(next(iter(student.values())))
    zero = next(iter(student.values())).new_zeros(images, dtype=torch.long)
    batch = {"targets": zero, "index": zero, "progress": 0.5}
    values = []
    for given in (whole, part):
        with keyed_draws(zero.device, 0):  # one that draws is to draw the same for both
            values.append(_copy(term).eval()(student, given, batch).mean)
    of_whole, of_part = values
    if not torch.allclose(of_whole, of_part, rtol=1e-3, atol=1e-6, equal_nan=True):
        raise UserError(
            f"model.terms.{term.name}: {type(term[0]).__name__} gives {of_whole.item():.4g} of all it reads "
            f"and {of_part.item():.4g} of what a cache has (the cacheable part, logits up to a number): "
            "forward has to take either"
        )


def _drawn(outputs: dict[Read, Tensor]) -> dict[Read, Tensor]:
    """Random ones of eight images: those of the two models may be alike to round-off before training."""
    generator = torch.Generator().manual_seed(0)
    drawn = {}
    for (word, block), x in outputs.items():
        values = torch.randn(8, *x.shape[1:], generator=generator).to(x)
        drawn[word, block] = values.softmax(-1) if word == "attention" else values
    return drawn


def _copy(term: BoundTerm) -> BoundTerm:
    """It may remember what it saw; one that cannot be copied has to."""
    with suppress(Exception):
        return deepcopy(term)
    return term
