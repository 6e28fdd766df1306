"""The files of a cache: one memory-mapped array a view, in it one row an image.

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
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from distill_dynamics.errors import UserError
from distill_dynamics.files import atomic_write, os_errors_name
from distill_dynamics.teacher_cache.layout import Block, Layout


class CacheFiles(NamedTuple):
    """Where the rows of a cache are, and whether they are whole."""

    folder: Path
    layout: Layout

    def view(self, view: int) -> Path:
        """The file of a view's rows."""
        return self.folder / f"view_{view:03d}.npy"

    def record(self, block: Block) -> Path:
        """The file that says that a block is written."""
        return self.folder / "done" / f"view_{block.view:03d}_{block.first // self.layout.rows:05d}.json"

    def map_view(self, view: int) -> NDArray[Any]:
        """Rows [N] of a view, read from disk when they are looked at. UserError unless they are all there."""
        path = self.view(view)
        try:
            # A plain array: arithmetic on numpy's memmap type is several times as slow.
            rows = np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
        except OSError as error:
            raise UserError(f"{path}: {error.strerror or error}; cache-teacher makes it again") from error
        except (ValueError, EOFError):
            rows = np.empty(0)
        if rows.shape != (self.layout.images,) or rows.dtype != self.layout.dtype:
            raise UserError(f"{path} is damaged (cut off?): delete it and run cache-teacher again")
        return rows

    def row_of_image(self) -> NDArray[np.int64]:
        """The row of each image, [N]. UserError where the file is missing or damaged."""
        path = self.folder / "rows.npy"
        try:
            rows = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{path} cannot be read ({error}): build the cache anew") from error
        if rows.shape != (self.layout.images,):
            raise UserError(f"{path} is damaged: build the cache anew")
        return rows

    def make(self) -> None:
        """Make the views' files that are not there, with nothing in them. UserError for a damaged one."""
        for view in range(self.layout.views):
            if self.view(view).exists():
                self.map_view(view)
                continue
            for record in (self.folder / "done").glob(f"view_{view:03d}_*.json"):
                record.unlink()  # of a file that was deleted
            with atomic_write(self.view(view)) as partial, partial.open("wb") as file:
                header = {"descr": np.lib.format.dtype_to_descr(self.layout.dtype), "fortran_order": False}
                np.lib.format.write_array_header_1_0(file, {**header, "shape": (self.layout.images,)})
                file.truncate(file.tell() + self.layout.images * self.layout.dtype.itemsize)

    def missing(self) -> list[Block]:
        """Blocks that are not written yet."""
        there = {path.name for path in (self.folder / "done").glob("*.json")}
        return [block for block in self.layout.blocks() if self.record(block).name not in there]

    def check(self, block: Block) -> None:
        """Read a block whole. Raises UserError where it is missing or not what was written."""
        rows = self.map_view(block.view)[block.first : block.last]
        try:
            content = json.loads(self.record(block).read_text())
            expected = content["sha256"]
            if content != {**content, **block._asdict()} and "view" in content:  # older caches do not say
                expected = None  # that of another block
        except (OSError, ValueError, KeyError, TypeError):
            expected = None
        if hashlib.sha256(rows.view(np.uint8).data).hexdigest() != expected:
            raise UserError(
                f"{self.view(block.view)}: rows {block.first} to {block.last - 1} are damaged "
                f"(checksum): delete {self.record(block)} and run cache-teacher again"
            )


def rows_checksum(rows: NDArray[np.int64]) -> str:
    """Of `row_of_image`, whatever the machine's order of bytes."""
    return hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest()


class Writer:
    """Writes the rows of some blocks, in their order; a block's record follows its last row."""

    def __init__(self, files: CacheFiles, blocks: Sequence[Block]) -> None:
        self.files = files
        self._blocks = iter(blocks)
        self._block = Block(0, 0, 0)
        self._next_row = 0
        self._digest = hashlib.sha256()

    def write(self, rows: NDArray[Any]) -> None:
        """The next rows, of the layout's type. OSError with the file's name, of a full disk with its room."""
        while len(rows):
            if self._next_row == self._block.last:
                self._block, self._digest = next(self._blocks), hashlib.sha256()
                self._next_row = self._block.first
            in_block, rows = np.split(rows, [self._block.last - self._next_row])
            self._append(in_block)

    def _append(self, rows: NDArray[Any]) -> None:
        content, path = rows.tobytes(), self.files.view(self._block.view)
        is_last = self._next_row + len(rows) == self._block.last
        # Not through the map, where a full disk would be a signal that kills the process.
        with os_errors_name(path), path.open("r+b") as file:
            file.seek((self._next_row - self.files.layout.images) * rows.itemsize, os.SEEK_END)
            file.write(content)
            if is_last:
                file.flush()
                os.fsync(file.fileno())
        self._digest.update(content)
        self._next_row += len(rows)
        if is_last:
            record = {"sha256": self._digest.hexdigest(), **self._block._asdict()}
            with atomic_write(self.files.record(self._block)) as partial:
                partial.write_text(json.dumps(record))
