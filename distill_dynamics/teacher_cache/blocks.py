"""Where a teacher's answers lie on disk: one memory-mapped array a view, in it one row an image.

    DIR/cache.json                what made the answers, and their layout
    DIR/rows.npy                  the row of each image
    DIR/view_000.npy              one structured row an image, with all its fields: a page or two to read
    DIR/done/view_000_00002.json  the checksum of rows 2n to 3n of view 0, n rows a block: they are written

Arrays are numpy's .npy, never pickled. A view's file has its full length from the start. Which rows of it
are written the records say, so that a killed build goes on with the blocks that have none.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distill_dynamics.data.keyed import View
from distill_dynamics.errors import UserError
from distill_dynamics.files import atomic_write, os_errors_name

MOST_ROWS = 10_000
"""Of a block: what a killed build has to do again."""

LEAST_ROWS = 256
"""Of a block, but for small data: each costs a file and a wait for the disk."""

BLOCKS = 64
"""A cache is cut into so many at least, where that leaves them `LEAST_ROWS`: ranks share them evenly."""

MAPPED = 64
"""Files that an `Answers` keeps open: training goes through a few views at a time."""


class Field(NamedTuple):
    """One part of an answer: shape and type."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def bytes(self) -> int:
        """In one row."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


class Block(NamedTuple):
    """Rows `first` to `last` (excluded) of one view."""

    view: int
    first: int
    last: int


@dataclass(frozen=True)
class Layout:
    """How many rows there are, and what is in them."""

    images: int
    """Rows of a view."""
    views: int
    rows: int
    """Of a block; the last one of a view may have fewer."""
    fields: dict[str, Field]

    @classmethod
    def of(cls, images: int, views: int, fields: dict[str, Field]) -> Layout:
        """Blocks that are equal to within a row or so a view."""
        most = min(max(images * views // BLOCKS, LEAST_ROWS), MOST_ROWS)
        return cls(images, views, -(-images // -(-images // most)), fields)

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
    def row(self) -> np.dtype:
        """Of numpy: all fields, packed."""
        return np.dtype([(name, field.dtype, field.shape) for name, field in self.fields.items()])

    @property
    def bytes(self) -> int:
        """Of all rows."""
        return self.images * self.views * self.row.itemsize

    def blocks(self) -> list[Block]:
        """All of them, view by view."""
        firsts = range(0, self.images, self.rows)
        return [
            Block(view, first, min(first + self.rows, self.images))
            for view in range(self.views)
            for first in firsts
        ]


class Answers:
    """The rows of a whole cache. Maps its files when they are first asked for, in each process anew."""

    def __init__(self, folder: str | os.PathLike, layout: Layout, fields: Sequence[str]) -> None:
        self.folder, self.layout, self.fields = Path(folder), layout, list(fields)
        self._mapped: dict[int, NDArray[Any]] = {}
        self._rows: NDArray[np.int64] | None = None

    def __getstate__(self) -> dict[str, Any]:
        # A worker process maps the files for itself.
        return {**self.__dict__, "_mapped": {}, "_rows": None}

    def __call__(self, views: Sequence[View]) -> dict[str, Tensor]:
        """The fields of the views given, stacked to [B, ...] each.

        Raises UserError for a file that is missing or cut off, and for an image that could not be read when
        the cache was built.
        """
        if self._rows is None:
            self._rows = read_rows(self.folder, self.layout)
        view, image = np.array(views, dtype=np.int64).reshape(-1, 2).T
        row = self._rows[image]
        kinds = {name: self.layout.fields[name] for name in self.fields}
        found = {name: np.empty((len(views), *kind.shape), kind.dtype) for name, kind in kinds.items()}
        for one in np.unique(view):
            here, mapped = np.flatnonzero(view == one), self._view(int(one))
            for name, values in found.items():
                values[here] = mapped[name][row[here]]
        floats = next(values for values in found.values() if values.dtype.kind == "f")
        absent = np.flatnonzero(np.isnan(floats.reshape(len(views), -1)[:, 0]))
        if len(absent):
            i = absent[0]
            first = int(row[i]) // self.layout.rows * self.layout.rows
            record = record_of(self.folder, self.layout, Block(int(view[i]), first, 0))
            raise UserError(
                f"teacher_cache: image {image[i]} of the training data could not be read when {self.folder} "
                f"was built; delete {record} and run cache-teacher again"
            )
        return {name: torch.from_numpy(values) for name, values in found.items()}

    def _view(self, view: int) -> NDArray[Any]:
        mapped = self._mapped.pop(view) if view in self._mapped else map_view(self.folder, self.layout, view)
        self._mapped[view] = mapped  # the last one used is the last to go
        if len(self._mapped) > MAPPED:
            del self._mapped[next(iter(self._mapped))]
        return mapped


def view_file(folder: Path, view: int) -> Path:
    """Where a view's rows are."""
    return folder / f"view_{view:03d}.npy"


def record_of(folder: Path, layout: Layout, block: Block) -> Path:
    """Where it is said that a block is written."""
    return folder / "done" / f"view_{block.view:03d}_{block.first // layout.rows:05d}.json"


def map_view(folder: Path, layout: Layout, view: int) -> NDArray[Any]:
    """Rows [N] of a view, read from disk when they are looked at. UserError where they are not all there."""
    path = view_file(folder, view)
    try:
        # A plain array: arithmetic on numpy's memmap type is several times as slow.
        rows = np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; cache-teacher makes it again") from error
    except (ValueError, EOFError):
        rows = np.empty(0)
    if rows.shape != (layout.images,) or rows.dtype != layout.row:
        raise UserError(f"{path} is damaged (cut off?): delete it and run cache-teacher again")
    return rows


def read_rows(folder: Path, layout: Layout) -> NDArray[np.int64]:
    """The row of each image. UserError where the file is missing or damaged."""
    path = folder / "rows.npy"
    try:
        rows = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} cannot be read ({error}): build the cache anew") from error
    if rows.shape != (layout.images,):
        raise UserError(f"{path} is damaged: build the cache anew")
    return rows


def rows_checksum(rows: NDArray[np.int64]) -> str:
    """Of `read_rows`, whatever the machine's order of bytes."""
    return hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest()


def make_files(folder: Path, layout: Layout) -> None:
    """Make the views' files that are not there, with nothing in them. UserError for one that is damaged."""
    for view in range(layout.views):
        path = view_file(folder, view)
        if path.exists():
            map_view(folder, layout, view)
            continue
        for record in (folder / "done").glob(f"view_{view:03d}_*.json"):
            record.unlink()  # of a file that was deleted
        with atomic_write(path) as partial, partial.open("wb") as file:
            header = {"descr": np.lib.format.dtype_to_descr(layout.row), "fortran_order": False}
            np.lib.format.write_array_header_1_0(file, {**header, "shape": (layout.images,)})
            file.truncate(file.tell() + layout.images * layout.row.itemsize)


class Writer:
    """Writes the rows of some blocks, in their order; a block's record follows its last row."""

    def __init__(self, folder: Path, layout: Layout, blocks: Sequence[Block]) -> None:
        self.folder, self.layout = folder, layout
        self._blocks = iter(blocks)
        self._block = Block(0, 0, 0)
        self._at = 0
        self._digest = hashlib.sha256()

    def write(self, rows: NDArray[Any]) -> None:
        """The next rows, of the layout's type. OSError with the file's name, of a full disk with its room."""
        while len(rows):
            if self._at == self._block.last:
                self._block, self._digest = next(self._blocks), hashlib.sha256()
                self._at = self._block.first
            here, rows = np.split(rows, [self._block.last - self._at])
            self._put(here)

    def _put(self, rows: NDArray[Any]) -> None:
        content, path = rows.tobytes(), view_file(self.folder, self._block.view)
        ends = self._at + len(rows) == self._block.last
        # Not through the map, where a full disk would be a signal that kills the process.
        with os_errors_name(path), path.open("r+b") as file:
            file.seek((self._at - self.layout.images) * rows.itemsize, os.SEEK_END)
            file.write(content)
            if ends:
                file.flush()
                os.fsync(file.fileno())
        self._digest.update(content)
        self._at += len(rows)
        if ends:
            with atomic_write(record_of(self.folder, self.layout, self._block)) as partial:
                partial.write_text(json.dumps({"sha256": self._digest.hexdigest(), **self._block._asdict()}))


def missing(folder: Path, layout: Layout) -> list[Block]:
    """Blocks that are not written yet."""
    there = {path.name for path in (folder / "done").glob("*.json")}
    return [block for block in layout.blocks() if record_of(folder, layout, block).name not in there]


def check_block(folder: Path, layout: Layout, block: Block) -> None:
    """Read a block whole. Raises UserError where it is missing or not what was written."""
    record = record_of(folder, layout, block)
    rows = map_view(folder, layout, block.view)[block.first : block.last]
    try:
        content = json.loads(record.read_text())
        expected = content["sha256"]
        if content != {**content, **block._asdict()} and "view" in content:  # older caches do not say
            expected = None  # that of another block
    except (OSError, ValueError, KeyError, TypeError):
        expected = None
    if hashlib.sha256(rows.view(np.uint8).data).hexdigest() != expected:
        raise UserError(
            f"{view_file(folder, block.view)}: rows {block.first} to {block.last - 1} are damaged "
            f"(checksum): delete {record} and run cache-teacher again"
        )
