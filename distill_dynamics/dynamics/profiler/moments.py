"""What is added up over batches and over ranks: moments of vectors, and rows, one an image."""

from dataclasses import dataclass

import numpy as np

from distill_dynamics.dynamics.profile import FloatArray


@dataclass
class Moments:
    """Mean and summed squared deviation of n vectors [C], merged without cancellation (Chan et al., 1979)."""

    n: int
    mean: FloatArray
    squares: FloatArray

    @classmethod
    def of(cls, values: FloatArray) -> "Moments":
        """Of values [n, C]."""
        mean = values.mean(axis=0)
        return cls(len(values), mean, ((values - mean) ** 2).sum(axis=0))

    def add(self, other: "Moments") -> "Moments":
        """Take the other's vectors in; in place, see `Rows`."""
        if other.n:
            n = self.n + other.n
            step = other.mean - self.mean
            self.mean += step * (other.n / n)
            self.squares += other.squares + step**2 * (self.n * other.n / n)
            self.n = n
        return self

    def standard_error(self) -> FloatArray:
        """[C] s / √n; NaN for fewer than two vectors."""
        if self.n < 2:
            return np.full_like(self.mean, np.nan)
        return np.sqrt(self.squares / (self.n - 1) / self.n)


class Rows:
    """A row for each image, in the order they come, in one block of memory that doubles when it is full.

    Not a list, nor arrays joined again and again: what outlives a batch and is allocated during it lands
    between the activations and leaves holes in the heap that the next batch does not fit into.
    """

    def __init__(self, *shape: int) -> None:
        self._block = np.empty((64, *shape))
        self.n = 0

    def add(self, rows: FloatArray) -> None:
        """Append rows [n, ...]."""
        if self.n + len(rows) > len(self._block):
            larger = np.empty((2 * (self.n + len(rows)), *self._block.shape[1:]))
            larger[: self.n] = self._block[: self.n]
            self._block = larger
        self._block[self.n : self.n + len(rows)] = rows
        self.n += len(rows)

    def all(self) -> FloatArray:
        """The rows so far, as they lie."""
        return self._block[: self.n]
