"""A whole cache: what made it, what it holds, and whether it may stand for a run's teacher."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill_dynamics.backbone import Backbone
from distill_dynamics.errors import UserError
from distill_dynamics.losses.logits import TopClasses
from distill_dynamics.teacher_cache.shards import Answers, Layout, missing

SCHEMA = 1
"""Version of `cache.json`."""

PIXELS_DEPEND_ON = ("torch", "torchvision", "timm", "numpy", "pillow")
"""Packages whose versions may change a view or an answer."""


def identity(teacher: Backbone, data: Any) -> dict[str, Any]:
    """Everything that a teacher's answers to a DataModule's views depend on; flat, plain values.

    `data` is set up for fitting. The run's own seed is not in it: views have one of their own.
    """
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
        "data": type(data).__name__,
        **{f"data.{name}": value for name, value in data.views_depend_on().items()},
        **{f"version of {name}": metadata.version(name) for name in PIXELS_DEPEND_ON},
    }
    return json.loads(json.dumps(facts))  # as a file gives it back: tuples are lists


def stored_name(block: int, shape: torch.Size | tuple[int, ...]) -> str:
    """The field of a teacher block's map, reduced to [C, H, W]."""
    return f"block_{block:02d}_{'x'.join(str(side) for side in shape)}"


@dataclass(frozen=True)
class TeacherCache:
    """What `cache-teacher` has written into a folder."""

    folder: Path
    identity: dict[str, Any]
    layout: Layout
    classes: int
    """K of the teacher."""
    temperature: float
    online: int
    """Blocks of the teacher up to this one are cheap enough to be run while training."""
    accuracy: dict[str, float]
    """The teacher's, on the validation images, percent."""

    @classmethod
    def read(cls, folder: str | os.PathLike) -> TeacherCache:
        """Raises UserError where the folder holds no cache of this version."""
        path = Path(folder).expanduser() / "cache.json"
        try:
            content = json.loads(path.read_text())
            if content["schema"] != SCHEMA:
                raise UserError(
                    f"teacher_cache: {path} has version {content['schema']}, this program reads {SCHEMA}: "
                    "build the cache anew"
                )
            return cls(
                path.parent,
                content["identity"],
                Layout.from_json(content["layout"]),
                content["classes"],
                content["temperature"],
                content["online"],
                content["accuracy"],
            )
        except FileNotFoundError:
            raise UserError(
                f"teacher_cache: {path} does not exist; cache-teacher --config CONFIG --out DIR makes it"
            ) from None
        except (OSError, KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise UserError(f"teacher_cache: {path} cannot be read: {error!r}") from error

    def to_json(self) -> dict[str, Any]:
        """What `read` reads."""
        return {
            "schema": SCHEMA,
            "identity": self.identity,
            "layout": self.layout.to_json(),
            "classes": self.classes,
            "temperature": self.temperature,
            "online": self.online,
            "accuracy": self.accuracy,
        }

    def check(self, wanted: Mapping[str, Any]) -> None:
        """Raises UserError, with the line that differs, unless `wanted` is what made the cache."""
        for name in dict.fromkeys([*wanted, *self.identity]):
            here, there = wanted.get(name), self.identity.get(name)
            if here != there:
                raise UserError(
                    f"teacher_cache: {self.folder} was made with {name} {there!r}, and here it is {here!r}"
                )

    def check_whole(self) -> None:
        """Raises UserError while shards are missing."""
        if lacking := len(missing(self.folder, self.layout)):
            raise UserError(
                f"teacher_cache: {self.folder} is unfinished, {lacking} of {len(self.layout.shards())} "
                "shards are missing; the same cache-teacher command goes on with it"
            )

    def answers(self) -> Answers:
        """Its rows."""
        return Answers(self.folder, self.layout)

    def top(self, row: Mapping[str, Tensor]) -> TopClasses:
        """The logits' part of a batch of rows.

        Stored in half precision, they no longer add up to 1. Scaled so that they do, their rounding (up to
        0.001) matters only in the second order where the student is near.
        """
        log_probs = row["log_probs"].float().log_softmax(dim=1)
        if "classes" in row:
            rest = row["rest"].float()
            return TopClasses(log_probs + torch.log1p(-rest)[:, None], row["classes"], rest)
        classes = torch.arange(self.classes, device=log_probs.device).expand_as(log_probs)
        return TopClasses(log_probs, classes, log_probs.new_zeros(len(log_probs)))
