"""A whole cache: what made it, what it holds, and whether it may stand for a run's teacher.

Letters: B batch, C channels, H W grid, K classes.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill_dynamics.errors import UserError
from distill_dynamics.losses.logits import TopClasses
from distill_dynamics.teacher_cache.files import CacheFiles, rows_checksum
from distill_dynamics.teacher_cache.layout import Layout
from distill_dynamics.teacher_cache.reader import CacheReader
from distill_dynamics.teacher_cache.scale import Scale

SCHEMA = 2
"""Version of the files."""


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
                raise UserError(f"{path} is of another version of this program; build it anew")
            content["layout"] = Layout.from_json(content["layout"])
            content["scales"] = {name: Scale(*scale) for name, scale in content["scales"].items()}
            return cls(path.parent, **content)
        except FileNotFoundError:
            raise UserError(
                f"{path} does not exist; cache-teacher --config CONFIG --out DIR makes it"
            ) from None
        except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{path} cannot be read: {error!r}") from error

    def to_json(self) -> dict[str, Any]:
        """What `read` reads."""
        content = {name: value for name, value in asdict(self).items() if name != "folder"}
        content["scales"] = {name: scale.to_json() for name, scale in self.scales.items()}
        return {"schema": SCHEMA, **content}

    @property
    def files(self) -> CacheFiles:
        """Its files in the folder."""
        return CacheFiles(self.folder, self.layout)

    def check_identity(self, wanted: Mapping[str, Any]) -> None:
        """Raises UserError, with the line that differs, unless `wanted` is what made the cache."""
        for name in dict.fromkeys([*wanted, *self.identity]):
            here, there = wanted.get(name), self.identity.get(name)
            if here != there:
                raise UserError(f"{self.folder} was made with {name} {there!r}, and here it is {here!r}")

    def check_finished(self) -> None:
        """Raises UserError while blocks are missing, and for a file that is missing, cut off or another's.

        Bits that have changed on disk are found by `cache-teacher --verify` alone, which reads everything.
        """
        files = self.files
        if self.rows_sha256 not in (None, rows_checksum(files.row_of_image())):
            raise UserError(
                f"{self.folder / 'rows.npy'} is not what was written (checksum): images would "
                "get the answers to others; build the cache anew"
            )
        if missing := files.missing():
            view, first, last = missing[0]
            raise UserError(
                f"{self.folder} is unfinished, {len(missing)} of {len(self.layout.blocks())} "
                f"blocks are missing (the first: rows {first} to {last - 1} of view {view}); the same "
                "cache-teacher command goes on with it"
            )
        for view in range(self.layout.views):
            files.map_view(view)

    def check_samples(self, share: int = 0, of: int = 1) -> None:
        """Read one block of each view, drawn anew each time. UserError where it is not what was written.

        That finds views that were swapped, and rows in a file with some luck. Of several processes each reads
        its share.
        """
        for view in range(share, self.layout.views, of):
            self.files.check(secrets.choice(self.layout.blocks_of(view)))

    def answers(self, fields: Sequence[str], prefix: str = "") -> CacheReader:
        """Its rows, of them these fields, with `prefix` before their names."""
        return CacheReader(self.files, fields, prefix)

    def logit_fields(self) -> list[str]:
        """Those that `logits` or `top` needs; none if no logits are stored."""
        return [name for name in ("log_probs", "classes", "rest") if name in self.layout.fields]

    @property
    def is_cut(self) -> bool:
        """Whether of each answer the likeliest classes alone are stored."""
        return "classes" in self.layout.fields

    def target(self, cached: Mapping[str, Tensor], field: str) -> Tensor:
        """What a loss sees of a map, [B, ...] in float32, of a batch of rows."""
        return self.scales[field].restored(cached[field])

    def logits(self, cached: Mapping[str, Tensor]) -> Tensor:
        """[B, K] of a batch of rows, each image's up to a number; of a cache that holds all classes.

        Stored in half precision (rounded by up to 0.0078 nats at log p = -20, 0.001 at -2), the probabilities
        no longer add up to 1. A loss that softens these logits scales them so that they do, and then their
        rounding matters only in the second order where the student is near.
        """
        return cached["log_probs"].float() * self.temperature

    def top(self, cached: Mapping[str, Tensor]) -> TopClasses:
        """The likeliest classes of a batch of rows, at the cache's temperature; scaled as `logits` says."""
        rest = cached["rest"].float()
        log_probs = cached["log_probs"].float().log_softmax(dim=1) + torch.log1p(-rest)[:, None]
        return TopClasses(log_probs, cached["classes"], rest)
