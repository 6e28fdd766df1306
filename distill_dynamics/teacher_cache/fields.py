"""What a cache stores of the teacher for each loss, and under which name.

Letters: B batch, C channels, H W grid.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from distill_dynamics.errors import UserError
from distill_dynamics.models.features import Wanted
from distill_dynamics.models.save import read_weights
from distill_dynamics.teacher_cache.fitted import NAME, fitted_state

LOGITS = ("logits", "dist_logits")
"""Words that the stored classes serve: a teacher in eval mode has one answer for both."""

Key = tuple[str, int, str]
"""Term, pair and word, as in `TeacherOutputs`."""


class Part(NamedTuple):
    """What a loss sees of the teacher: its field in a row of the cache, and its shape without B."""

    name: str
    shape: tuple[int, ...]


class Reader(NamedTuple):
    """A loss beside what it reads of the teacher, and the shape, without B, of the student's side of it."""

    wanted: Wanted
    loss: nn.Module
    student_block: int | None
    student_shape: tuple[int, ...]

    @property
    def key(self) -> Key:
        """As in `TeacherOutputs`."""
        return self.wanted.term, self.wanted.pair, self.wanted.word

    @property
    def place(self) -> str:
        """ "map, student block 2 with teacher block 3", or what is read once."""
        if self.wanted.block is None:
            return self.wanted.word
        blocks = f"student block {self.student_block} with teacher block {self.wanted.block}"
        return f"{self.wanted.word}, {blocks}"

    @property
    def narrows(self) -> bool:
        """Whether the loss says that it sees a part of this alone."""
        return f"teacher_{self.wanted.word}" in _parameters(self.loss)


def _parameters(loss: nn.Module) -> list[str]:
    cacheable: Any = getattr(loss, "cacheable", None)
    return [] if cacheable is None else [*inspect.signature(cacheable).parameters]


def part_of(reader: Reader, value: Tensor) -> Tensor:
    """What a loss sees of what it reads of the teacher, [B, ...]; all of it, unless it has `cacheable`.

    `cacheable` takes it by its name, and may take the student's of the same word, of which the shape counts:
    a loss may pool the teacher's map first to the student's grid.
    """
    if not reader.narrows:
        return value
    given = {f"teacher_{reader.wanted.word}": value}
    if f"student_{reader.wanted.word}" in _parameters(reader.loss):
        shape = (len(value), *reader.student_shape)
        given[f"student_{reader.wanted.word}"] = value.new_empty(1).expand(shape)
    return reader.loss.cacheable(**given)  # type: ignore[operator]


@torch.no_grad()
def field_of(reader: Reader, value: Tensor) -> Part:
    """Name and shape of the field of what a loss sees of the teacher's value [B, ...]; only its shape counts.

    The name changes with what the loss's `cacheable` does, as far as one fixed input shows: whole numbers,
    whose sums are exact in any order, and the result in half precision, so that all devices agree on it.
    """
    generator = torch.Generator().manual_seed(0)
    fixed = torch.randint(-8, 9, (2, *value.shape[1:]), generator=generator)
    part = part_of(reader, fixed.to(value.device, torch.float32))
    hashed = [part.half()]
    if hasattr(reader.loss, "fit"):  # what it does hangs on what it has fitted, which devices round otherwise
        hashed = [*fitted_state(reader.loss).values()]
    content = b"".join(value.cpu().contiguous().numpy().tobytes() for value in hashed)
    digest = hashlib.sha256(content).hexdigest()[:8]
    how = type(reader.loss).__name__ if reader.narrows else reader.wanted.word
    where = "teacher" if reader.wanted.block is None else f"block_{reader.wanted.block:02d}"
    shape = tuple(part.shape[1:])
    return Part(f"{where}_{how}_{'x'.join(map(str, shape))}_{digest}", shape)


def parts_of(readers: list[Reader], values: Mapping[tuple[str, int | None], Tensor]) -> dict[Key, Part]:
    """Of each reader but those of logits, from one batch of the teacher's answers."""
    return {
        reader.key: field_of(reader, values[reader.wanted.word, reader.wanted.block])
        for reader in readers
        if reader.wanted.word not in LOGITS
    }


def shapes_seen(readers: list[Reader], parts: Mapping[Key, Part]) -> dict[str, list[int]]:
    """What the losses that have `fit` see of the teacher, without B, by the keys of the config."""
    fitting = [reader for reader in readers if reader.key in parts and hasattr(reader.loss, "fit")]
    return {
        f"model.terms.{r.wanted.term}.{r.wanted.pair}.{r.wanted.word}": list(parts[r.key].shape)
        for r in fitting
    }


def check_shapes(
    folder: Path, readers: list[Reader], parts: Mapping[Key, Part], stored: Collection[str]
) -> None:
    """UserError where losses were fitted to a teacher's features of other shapes: of another student's grid.

    Caches of earlier versions do not say. Of a field that is `stored` the name has the shape; a loss whose
    block is run while training, and that sees it on the student's grid, is refused then.
    """
    if not (folder / NAME).is_file():
        return
    seen = read_weights(folder / NAME)[1].get("seen", {})
    fitting = [reader for reader in readers if reader.key in parts and hasattr(reader.loss, "fit")]
    for reader in fitting:
        ((place, shape),) = shapes_seen([reader], parts).items()
        was = seen.get(place)
        if was is None:
            if parts[reader.key].name not in stored and f"student_{reader.wanted.word}" in _parameters(
                reader.loss
            ):
                raise UserError(
                    f"{folder / NAME} is of an earlier version, which does not say on which "
                    f"student's grid {place} was fitted; build the cache anew"
                )
        elif was != shape:
            raise UserError(
                f"{folder / NAME}: {place} was fitted to the teacher's features of {was} and "
                f"sees {shape} here, as the student has another grid; build a cache with this config"
            )
