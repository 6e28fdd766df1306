"""A teacher of whose answers a cache holds some: the same call as the live one's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from distill_dynamics.errors import UserError
from distill_dynamics.models.features import TeacherOutputs, Wanted
from distill_dynamics.models.teacher import Teacher
from distill_dynamics.teacher_cache.cache import TeacherCache
from distill_dynamics.teacher_cache.fields import LOGITS, Key, Part, Reader
from distill_dynamics.teacher_cache.reader import CacheReader


class CachedTeacher:
    """Answers from a batch's row of the cache; runs the teacher for what that does not hold.

    Raises:
        UserError: the cache lacks what is not cheap to run, or holds classes that a loss cannot do with.
    """

    def __init__(
        self, teacher: Teacher, cache: TeacherCache, readers: Sequence[Reader], parts: Mapping[Key, Part]
    ) -> None:
        self.teacher, self.cache = teacher, cache
        self.accuracy: dict[str, float] = {}
        """The teacher's, where the cache has it of the run's validation images."""
        self.of_logits = [reader.key for reader in readers if reader.wanted.word in LOGITS]
        for reader in readers:
            if reader.wanted.word in LOGITS:
                _check_logits(reader, cache)
        self.stored = {key: name for key, (name, _) in parts.items() if name in cache.layout.fields}
        self.live = [reader.wanted for reader in readers if reader.key in parts.keys() - self.stored.keys()]
        for wanted in self.live:
            if wanted.block is None or wanted.block > cache.online:
                what = "" if wanted.block is None else f" of the teacher's block {wanted.block}"
                raise UserError(
                    f"{cache.folder} holds no {wanted.word}{what} as "
                    "the terms here need it; build one with this config"
                )

    @property
    def fields(self) -> list[str]:
        """Those that a batch's row needs to have."""
        logits = self.cache.logit_fields() if self.of_logits else []
        return [*logits, *dict.fromkeys(self.stored.values())]

    @property
    def prefix(self) -> str:
        """Of its fields' names among those of other teachers' caches."""
        return f"{self.teacher.name}/" if self.teacher.name else ""

    def reader(self) -> CacheReader:
        """What gives a batch's rows."""
        return self.cache.answers(self.fields, self.prefix)

    def __call__(
        self, batch: Tensor, wanted: Sequence[Wanted], stored: Mapping[str, Tensor] | None = None
    ) -> TeacherOutputs:
        """What the terms want of the teacher; images that have no row are shown to the live one."""
        if stored is None:
            return self.teacher(batch, wanted)
        cached = {name: stored[self.prefix + name] for name in self.fields}
        outputs = self.teacher(batch, self.live)
        outputs |= {key: self.cache.target(cached, name) for key, name in self.stored.items()}
        if self.of_logits:
            answer: Any = self.cache.top(cached) if self.cache.is_cut else self.cache.logits(cached)
            outputs |= dict.fromkeys(self.of_logits, answer)
        return outputs


def _check_logits(reader: Reader, cache: TeacherCache) -> None:
    term, kind = reader.wanted.term, type(reader.loss).__name__
    if not cache.logit_fields():
        raise UserError(f"{cache.folder} holds no logits, and the term {term} reads them")
    if not cache.is_cut:
        return
    if not getattr(reader.loss, "takes_top_classes", False):
        raise UserError(
            f"{cache.folder} holds the likeliest classes, and term {term} ({kind}) needs "
            f"all: build one with --top_k {cache.classes}"
        )
    temperature = reader.loss.temperature
    if temperature != cache.temperature:
        raise UserError(
            f"{cache.folder} was made with model.temperature {cache.temperature}, and "
            f"here it is {temperature}, for which it would have to hold all classes"
        )
