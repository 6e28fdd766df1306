"""A whole cache: what made it, what it holds, and whether it may stand for a run's teacher.

Letters: B batch, C channels, H W grid, K classes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distill_dynamics.data.sources import fingerprint
from distill_dynamics.errors import UserError
from distill_dynamics.losses.logits import TopClasses
from distill_dynamics.losses.maps import at_least_float32
from distill_dynamics.models.backbone import Backbone
from distill_dynamics.teacher_cache.blocks import (
    Answers,
    Block,
    Layout,
    check_block,
    map_view,
    missing,
    read_rows,
    rows_checksum,
)

SCHEMA = 2
"""Version of the files."""

ANSWERS = 1
"""To be raised when this package's views, or what it stores of an answer to one, would be others."""

PIXELS_DEPEND_ON = ("torch", "torchvision", "timm", "numpy", "pillow")
"""Packages whose versions may change a view or an answer."""


def identity(teacher: Backbone, data: Any, precision: str) -> dict[str, Any]:
    """Everything that a teacher's answers to a DataModule's views depend on; flat, plain values.

    `data` is set up for fitting. The run's own seed is not in it: views have one of their own.
    """
    if not hasattr(data, "views_depend_on"):
        raise UserError(
            f"data: {type(data).__name__} has no fixed views for a teacher's cache; those of "
            "distill_dynamics.data have (write yours as a subclass of ImageData)"
        )
    weights = hashlib.sha256()
    for key, value in teacher.model.state_dict().items():
        weights.update(f"{key} {value.dtype} {list(value.shape)}".encode())
        weights.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    facts = {
        "teacher.name": teacher.name,
        "teacher.timm_kwargs": teacher.timm_kwargs,
        "teacher.weights": weights.hexdigest()[:16],
        "teacher.mean": teacher.mean,
        "teacher.std": teacher.std,
        "teacher's precision": precision,
        **{f"data.{name}": value for name, value in data.views_depend_on().items()},
        "version of answers": ANSWERS,
        # Of one version there are builds for CPUs and for GPUs, 2.6.0+cpu and so on.
        **{f"version of {name}": metadata.version(name).split("+")[0] for name in PIXELS_DEPEND_ON},
    }
    return json.loads(json.dumps(facts))  # as a file gives it back: tuples are lists


def validated_on(data: Any) -> dict[str, Any]:
    """What, beside `identity`, the teacher's accuracy depends on; `data` has its validation images."""
    return {
        "images": fingerprint(data.sources["val"]),
        "crop_pct": data.crop_pct,
        "interpolation": data.interpolation,
    }


def teacher_part(loss: Any, student_shape: Sequence[int], teacher_map: Tensor) -> Tensor:
    """What a loss sees of the teacher's map [B, C, H, W], beside a student's maps [C, H, W].

    Its `teacher_part(student_map, teacher_map)` if it has one, as a loss may pool the map first.
    """
    if not hasattr(loss, "teacher_part"):
        return teacher_map
    return loss.teacher_part(teacher_map.new_empty(1).expand(len(teacher_map), *student_shape), teacher_map)


@torch.no_grad()
def field_of(
    block: int, loss: Any, student_shape: Sequence[int], teacher_map: Tensor
) -> tuple[str, tuple[int, ...]]:
    """Name and shape of the field of what a loss sees of a block's map [B, C, H, W]; only its shape counts.

    The name changes with what the loss's `teacher_part` does, as far as one fixed input shows: whole numbers,
    whose sums are exact in any order, and the result in half precision, so that all devices agree on it.
    """
    generator = torch.Generator().manual_seed(0)
    fixed = torch.randint(-8, 9, (2, *teacher_map.shape[1:]), generator=generator)
    part = teacher_part(loss, student_shape, fixed.to(teacher_map.device, torch.float32))
    digest = hashlib.sha256(part.half().cpu().contiguous().numpy().tobytes()).hexdigest()[:8]
    how = type(loss).__name__ if hasattr(loss, "teacher_part") else "map"
    shape = tuple(part.shape[1:])
    return f"block_{block:02d}_{how}_{'x'.join(map(str, shape))}_{digest}", shape


class Scale:
    """What a field's channels are like, so that half precision holds any map: stored is how they deviate.

    A channel may have a mean that is large beside its deviation, of which a loss that standardises sees the
    deviation alone; and activations may lie beyond 65,504, where half precision ends. What is stored of x is
    (x - centre) / spread, and its rounding is at most 1/2048 of that.
    """

    def __init__(self, centre: Sequence[float], spread: Sequence[float]) -> None:
        self.centre, self.spread = torch.tensor(centre), torch.tensor(spread)

    @classmethod
    def of(cls, sample: Tensor) -> Scale:
        """Each channel's mean and standard deviation in a sample [B, C, ...]."""
        channels = sample.double().transpose(0, 1).flatten(1)
        spread, centre = torch.std_mean(channels, dim=1, correction=0)
        # One that is still in the sample may move elsewhere.
        spread = spread.clamp(min=max(1e-3 * float(spread.square().mean().sqrt()), 1e-30))
        return cls(centre.tolist(), spread.tolist())

    def to_json(self) -> list[list[float]]:
        """Plain values, to call `Scale` with."""
        return [self.centre.tolist(), self.spread.tolist()]

    def stored(self, x: Tensor) -> Tensor:
        """[B, C, ...], as it lies in the cache once it is rounded."""
        centre, spread = self._like(x)
        return (at_least_float32(x) - centre) / spread

    def restored(self, x: Tensor) -> Tensor:
        """The opposite."""
        centre, spread = self._like(x)
        return torch.addcmul(centre, x.float(), spread)

    def _like(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.centre.device != x.device:  # once
            self.centre, self.spread = self.centre.to(x.device), self.spread.to(x.device)
        shape = (-1, *[1] * (x.ndim - 2))
        return self.centre.view(shape), self.spread.view(shape)


@dataclass(frozen=True)
class TeacherCache:
    """What `cache-teacher` has written into a folder."""

    folder: Path
    identity: dict[str, Any]
    layout: Layout
    scales: dict[str, Scale]
    """Of the maps' fields."""
    classes: int
    """K of the teacher."""
    temperature: float
    online: int
    """Blocks of the teacher up to this one are cheap enough to be run while training."""
    accuracy: dict[str, float]
    """The teacher's, percent, on the images of `validated_on`; empty where no logits are stored."""
    validated_on: dict[str, Any]
    rows_sha256: str | None = None
    """Of the row of each image; None in a cache of an earlier version."""

    @classmethod
    def read(cls, folder: str | os.PathLike) -> TeacherCache:
        """Raises UserError where the folder holds no cache of this version."""
        path = Path(folder).expanduser() / "cache.json"
        try:
            content = json.loads(path.read_text())
            if content.pop("schema") != SCHEMA:
                raise UserError(f"teacher_cache: {path} is of another version of this program; build it anew")
            content["layout"] = Layout.from_json(content["layout"])
            content["scales"] = {name: Scale(*scale) for name, scale in content["scales"].items()}
            return cls(path.parent, **content)
        except FileNotFoundError:
            raise UserError(
                f"teacher_cache: {path} does not exist; cache-teacher --config CONFIG --out DIR makes it"
            ) from None
        except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"teacher_cache: {path} cannot be read: {error!r}") from error

    def to_json(self) -> dict[str, Any]:
        """What `read` reads."""
        content = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "folder"}
        content["layout"] = self.layout.to_json()
        content["scales"] = {name: scale.to_json() for name, scale in self.scales.items()}
        return {"schema": SCHEMA, **content}

    def check(self, wanted: Mapping[str, Any]) -> None:
        """Raises UserError, with the line that differs, unless `wanted` is what made the cache."""
        for name in dict.fromkeys([*wanted, *self.identity]):
            here, there = wanted.get(name), self.identity.get(name)
            if here != there:
                raise UserError(
                    f"teacher_cache: {self.folder} was made with {name} {there!r}, and here it is {here!r}"
                )

    def check_whole(self) -> None:
        """Raises UserError while blocks are missing, and for a file that is missing, cut off or another's.

        Bits that have changed on disk are found by `cache-teacher --verify` alone, which reads everything.
        """
        rows = read_rows(self.folder, self.layout)
        if self.rows_sha256 not in (None, rows_checksum(rows)):
            raise UserError(
                f"teacher_cache: {self.folder / 'rows.npy'} is not what was written (checksum): images would "
                "get the answers to others; build the cache anew"
            )
        if lacking := missing(self.folder, self.layout):
            view, first, last = lacking[0]
            raise UserError(
                f"teacher_cache: {self.folder} is unfinished, {len(lacking)} of {len(self.layout.blocks())} "
                f"blocks are missing (the first: rows {first} to {last - 1} of view {view}); the same "
                "cache-teacher command goes on with it"
            )
        for view in range(self.layout.views):
            map_view(self.folder, self.layout, view)

    def check_some(self, share: int = 0, of: int = 1) -> None:
        """Read one block of each view, drawn anew each time. UserError where it is not what was written.

        That finds views that were swapped, and rows in a file with some luck. Of several processes each reads
        its share.
        """
        rng, firsts = np.random.default_rng(), range(0, self.layout.images, self.layout.rows)
        for view in range(share, self.layout.views, of):
            first = int(rng.choice(firsts))
            last = min(first + self.layout.rows, self.layout.images)
            check_block(self.folder, self.layout, Block(view, first, last))

    def answers(self, fields: Sequence[str]) -> Answers:
        """Its rows, of them these fields."""
        return Answers(self.folder, self.layout, fields)

    def logit_fields(self) -> list[str]:
        """Those that `top` needs; none if no logits are stored."""
        return [name for name in ("log_probs", "classes", "rest") if name in self.layout.fields]

    def part(self, row: Mapping[str, Tensor], field: str) -> Tensor:
        """What a loss sees of a map, [B, ...] in float32, of a batch of rows."""
        return self.scales[field].restored(row[field])

    def top(self, row: Mapping[str, Tensor], temperature: float) -> TopClasses:
        """The logits' part of a batch of rows. With all classes stored, any temperature will do.

        Stored in half precision (rounded by up to 0.0078 nats at log p = -20, 0.001 at -2), they no longer
        add up to 1. Scaled so that they do, their rounding matters only in the second order where the student
        is near.
        """
        log_probs = row["log_probs"].float()
        if "classes" in row:
            rest = row["rest"].float()
            return TopClasses(
                log_probs.log_softmax(dim=1) + torch.log1p(-rest)[:, None], row["classes"], rest
            )
        log_probs = (log_probs * (self.temperature / temperature)).log_softmax(dim=1)
        classes = torch.arange(self.classes, device=log_probs.device).expand_as(log_probs)
        return TopClasses(log_probs, classes, log_probs.new_zeros(len(log_probs)))
