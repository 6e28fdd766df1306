"""The teachers that a config names: the one `model.teacher`, and those of `model.teachers`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from distill_dynamics.errors import UserError
from distill_dynamics.models.backbone import Backbone
from distill_dynamics.models.features import Wanted
from distill_dynamics.models.teacher import Precision, Teacher


@dataclass
class TeacherSettings:
    """One of several teachers.

    Args:
        backbone: the model.
        precision: what it computes in; as `model.teacher_precision`.
        cache: folder in which `cache-teacher` stores its answers, and from which training reads them; as
            `model.teacher_cache`.
        shard: share its weights out over the devices; as `model.shard_teacher`.
    """

    backbone: Backbone
    precision: Precision | None = None
    cache: str | None = None
    shard: bool = False


def one_teacher(
    backbone: Backbone | None, precision: Precision | None, cache: str | None, shard: bool
) -> TeacherSettings | None:
    """The settings of `model.teacher`; None without one. UserError for settings of none."""
    if backbone is not None:
        return TeacherSettings(backbone, precision, cache, shard)
    if precision or cache or shard:
        raise UserError(
            "model: without a teacher shard_teacher, teacher_cache and teacher_precision have no meaning "
            "(one of model.teachers has precision, cache and shard beside its backbone)"
        )
    return None


def make_teachers(
    one: TeacherSettings | None, named: Mapping[str, TeacherSettings], channels_last: bool
) -> dict[str, Teacher]:
    """By name, in the order of the config; "" is `one`, of `model.teacher`, which is the first.

    UserError for names and settings that are none, or do not go together.
    """
    for name, of in named.items():
        if not isinstance(of, TeacherSettings):
            raise UserError(
                f"model.teachers: {name!r} is of the type {type(of).__name__}; give "
                "distill_dynamics.TeacherSettings(backbone)"
            )
    given = ({} if one is None else {"": one}) | dict(named)
    made = {
        name: Teacher(of.backbone, of.precision, channels_last, of.shard, name, place == 0, of.cache)
        for place, (name, of) in enumerate(given.items())
    }
    for name in named:
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-]+", name):  # YAML has 1 for a number
            raise UserError(
                f"model.teachers: {name!r} is no name of files and metrics; take letters, digits, _ and - "
                "(a number in quotes)"
            )
    folders: dict[Path, Teacher] = {}
    for teacher in made.values():
        _check(teacher, channels_last)
        if teacher.cache is not None:
            other = folders.setdefault(Path(teacher.cache).expanduser().resolve(), teacher)
            if other is not teacher:
                raise UserError(
                    f"{teacher.key_of('cache')} is that of {other.key}: each teacher has a folder of its own"
                )
    return made


def _check(teacher: Teacher, channels_last: bool) -> None:
    if teacher.precision not in (None, *get_args(Precision)):
        raise UserError(
            f"{teacher.key_of('precision')} is {' or '.join(get_args(Precision))}, not {teacher.precision!r}"
        )
    if teacher.sharded and channels_last:
        raise UserError(
            f"{teacher.key_of('shard')}: a teacher cannot be sharded with its channels last; choose one of "
            "the two"
        )


def check_all_read(teachers: Mapping[str, Teacher], wanted: Iterable[Wanted]) -> None:
    """UserError for one with a name that no term reads; `model.teacher` may be there to be watched."""
    read = {one.teacher for one in wanted}
    for name, teacher in teachers.items():
        if name and name not in read:
            raise UserError(f"{teacher.key}: no term reads it: give one teacher: {name}, or leave it out")


def name_of_teacher(term: str, asked: str | None, known: Mapping[str, object]) -> str | None:
    """The name of the teacher that a term reads, if it reads one; None where there is none.

    UserError for a name that no teacher has, and where several have names and the term gives none.
    """
    names = ", ".join(name for name in known if name)
    if asked is not None and (asked not in known or not asked):
        there = f"those of model.teachers are {names}" if names else "model.teachers has none"
        raise UserError(f"model.terms.{term}: there is no teacher {asked!r}; {there}")
    if asked is not None:
        return asked
    if "" in known or not known:
        return "" if known else None
    if len(known) > 1:
        raise UserError(f"model.terms.{term}: which teacher does it read? Give teacher: one of {names}")
    return next(iter(known))
