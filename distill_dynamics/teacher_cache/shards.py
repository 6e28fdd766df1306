"""Where a teacher's answers lie on disk: memory-mapped arrays, one row a view of an image.

    DIR/cache.json                      what made the answers, and their layout
    DIR/view_000/00002/log_probs.npy    rows of one shard: images 2n to 3n of view 0, n rows a shard
                       checksums.json   of each array of the shard

Arrays are numpy's .npy, never pickled. A shard appears whole or not at all, so that a killed build goes on
with the shards that are missing.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distill_dynamics.data.keyed import View
from distill_dynamics.errors import UserError

SHARD_BYTES = 256 * 2**20
"""About how large a shard becomes; a builder holds one in memory."""


class Field(NamedTuple):
    """One array of the cache: a row's shape and type."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def row_bytes(self) -> int:
        """Of one row."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


class Shard(NamedTuple):
    """Rows `first` to `last` (excluded), which are images, of one view."""

    view: int
    first: int
    last: int


@dataclass(frozen=True)
class Layout:
    """How many rows there are, and what is in them."""

    images: int
    views: int
    rows: int
    """Rows of a shard; the last one of a view may have fewer."""
    fields: dict[str, Field]

    @classmethod
    def of(cls, images: int, views: int, fields: dict[str, Field]) -> Layout:
        """Shards of about `SHARD_BYTES`, equal to within a row in size."""
        most = max(1, SHARD_BYTES // cls(images, views, images, fields).row_bytes)
        shards = -(-images // most)
        return cls(images, views, -(-images // shards), fields)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Layout:
        """What `to_json` made."""
        fields = {name: Field(tuple(shape), dtype) for name, (shape, dtype) in content["fields"].items()}
        return cls(content["images"], content["views"], content["rows"], fields)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        fields = {name: [list(field.shape), field.dtype] for name, field in self.fields.items()}
        return {"images": self.images, "views": self.views, "rows": self.rows, "fields": fields}

    @property
    def row_bytes(self) -> int:
        """Of one view of one image."""
        return sum(field.row_bytes for field in self.fields.values())

    @property
    def bytes(self) -> int:
        """Of all arrays."""
        return self.images * self.views * self.row_bytes

    def shards(self) -> list[Shard]:
        """All of them, view by view."""
        firsts = range(0, self.images, self.rows)
        return [
            Shard(view, first, min(first + self.rows, self.images))
            for view in range(self.views)
            for first in firsts
        ]


class Answers:
    """The rows of a whole cache. Maps its files when they are first asked for, in each process anew."""

    def __init__(self, folder: str | os.PathLike, layout: Layout) -> None:
        self.folder, self.layout = Path(folder), layout
        self._open: dict[tuple[int, int], dict[str, NDArray[Any]]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}  # a worker process maps the files for itself

    def __call__(self, views: Sequence[View]) -> dict[str, Tensor]:
        """Rows of the views given, each field stacked to [B, ...]."""
        rows = self.layout.rows
        found = [(self._shard(view, image // rows), image % rows) for view, image in views]
        return {
            name: torch.from_numpy(np.stack([arrays[name][row] for arrays, row in found]))
            for name in self.layout.fields
        }

    def _shard(self, view: int, number: int) -> dict[str, NDArray[Any]]:
        if (view, number) not in self._open:
            folder = shard_folder(self.folder, self.layout, Shard(view, number * self.layout.rows, 0))
            self._open[view, number] = {
                name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
                for name in self.layout.fields
            }
        return self._open[view, number]


def shard_folder(folder: Path, layout: Layout, shard: Shard) -> Path:
    """Where a shard is, once it is there."""
    return folder / f"view_{shard.view:03d}" / f"{shard.first // layout.rows:05d}"


def write_shard(folder: Path, layout: Layout, shard: Shard, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write the rows of a shard and their checksums; the shard appears whole or not at all."""
    final = shard_folder(folder, layout, shard)
    partial = final.with_name(final.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name, field in layout.fields.items():
        assert arrays[name].shape == (shard.last - shard.first, *field.shape)
        with (partial / f"{name}.npy").open("wb") as file:
            np.save(file, arrays[name].astype(field.dtype, copy=False), allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
    checksums = {name: _checksum(partial / f"{name}.npy") for name in layout.fields}
    (partial / "checksums.json").write_text(json.dumps(checksums))
    partial.rename(final)


def missing(folder: Path, layout: Layout) -> list[Shard]:
    """Shards that are not there yet."""
    return [shard for shard in layout.shards() if not shard_folder(folder, layout, shard).is_dir()]


def check_shard(folder: Path, layout: Layout, shard: Shard) -> None:
    """Read a shard whole. Raises UserError where a file is missing or not what was written."""
    place = shard_folder(folder, layout, shard)
    try:
        checksums = json.loads((place / "checksums.json").read_text())
        wrong = [name for name in layout.fields if checksums[name] != _checksum(place / f"{name}.npy")]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{place} is damaged: delete it and run cache-teacher again") from None
    if wrong:
        raise UserError(
            f"{place / wrong[0]}.npy is damaged (checksum): delete {place} and run cache-teacher again"
        )


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
