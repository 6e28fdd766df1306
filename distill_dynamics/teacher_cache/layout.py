"""What a row of the cache holds, and how its rows are cut into blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

MAX_ROWS = 10_000
"""Of a block: what a killed build has to do again."""

MIN_ROWS = 256
"""Of a block, but for small data: each costs a file and a wait for the disk."""

MIN_BLOCKS = 64
"""A cache is cut into so many at least, where that leaves them `MIN_ROWS`: ranks share them evenly."""


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
    """How many rows there are, and what is in them. `dataclasses.asdict` makes it plain values."""

    images: int
    """Rows of a view."""
    views: int
    rows: int
    """Of a block; the last one of a view may have fewer."""
    fields: dict[str, Field]

    @classmethod
    def of(cls, images: int, views: int, fields: dict[str, Field]) -> Layout:
        """Blocks that are equal to within a row or so a view."""
        most = min(max(images * views // MIN_BLOCKS, MIN_ROWS), MAX_ROWS)
        return cls(images, views, -(-images // -(-images // most)), fields)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Layout:
        """From the plain values of a file."""
        fields = {name: Field(tuple(shape), dtype) for name, (shape, dtype) in content["fields"].items()}
        return cls(content["images"], content["views"], content["rows"], fields)

    @property
    def dtype(self) -> np.dtype:
        """Of a row: all fields, packed."""
        return np.dtype([(name, field.dtype, field.shape) for name, field in self.fields.items()])

    @property
    def bytes(self) -> int:
        """Of all rows."""
        return self.images * self.views * self.dtype.itemsize

    def block_at(self, view: int, row: int) -> Block:
        """The block that a row is in."""
        first = row // self.rows * self.rows
        return Block(view, first, min(first + self.rows, self.images))

    def blocks_of(self, view: int) -> list[Block]:
        """The blocks of a view."""
        return [self.block_at(view, first) for first in range(0, self.images, self.rows)]

    def blocks(self) -> list[Block]:
        """All blocks, view by view."""
        return [block for view in range(self.views) for block in self.blocks_of(view)]
