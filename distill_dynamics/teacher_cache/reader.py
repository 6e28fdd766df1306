"""The rows of a cache as training reads them, in the processes that prepare images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distill_dynamics.data.keyed import View
from distill_dynamics.errors import UserError
from distill_dynamics.teacher_cache.files import CacheFiles

OPEN_FILES = 64
"""Views whose files a reader keeps open: training goes through a few at a time."""


class CacheReader:
    """Gives rows of a cache. Maps its files when they are first asked for, in each process anew.

    Its fields are given with `prefix` before their names, so that those of several caches are told apart.
    """

    def __init__(self, files: CacheFiles, fields: Sequence[str], prefix: str = "") -> None:
        self.files, self.fields, self.prefix = files, list(fields), prefix
        self._mapped: dict[int, NDArray[Any]] = {}
        self._row_of_image: NDArray[np.int64] | None = None

    def __getstate__(self) -> dict[str, Any]:
        # A worker process maps the files for itself.
        return {**self.__dict__, "_mapped": {}, "_row_of_image": None}

    def __call__(self, views: Sequence[View]) -> dict[str, Tensor]:
        """The fields of the views given, stacked to [B, ...] each.

        Raises UserError for a file that is missing or cut off, and for an image that could not be read when
        the cache was built.
        """
        if self._row_of_image is None:
            self._row_of_image = self.files.row_of_image()
        view, image = np.array(views, dtype=np.int64).reshape(-1, 2).T
        row = self._row_of_image[image]
        kinds = {name: self.files.layout.fields[name] for name in self.fields}
        cached = {name: np.empty((len(views), *kind.shape), kind.dtype) for name, kind in kinds.items()}
        for one in np.unique(view):
            places, mapped = np.flatnonzero(view == one), self._view(int(one))
            for name, values in cached.items():
                values[places] = mapped[name][row[places]]
        floats = next(values for values in cached.values() if values.dtype.kind == "f")
        absent = np.flatnonzero(np.isnan(floats.reshape(len(views), -1)[:, 0]))
        if len(absent):
            i = absent[0]
            record = self.files.record(self.files.layout.block_at(int(view[i]), int(row[i])))
            raise UserError(
                f"image {image[i]} of the training data could not be read when "
                f"{self.files.folder} was built; delete {record} and run cache-teacher again"
            )
        return {self.prefix + name: torch.from_numpy(values) for name, values in cached.items()}

    def _view(self, view: int) -> NDArray[Any]:
        mapped = self._mapped.pop(view) if view in self._mapped else self.files.map_view(view)
        self._mapped[view] = mapped  # the last one used is the last to go
        if len(self._mapped) > OPEN_FILES:
            del self._mapped[next(iter(self._mapped))]
        return mapped


class CacheReaders:
    """Gives what several caches hold of the same views, each of another teacher."""

    def __init__(self, readers: Sequence[CacheReader]) -> None:
        self.readers = readers

    def __call__(self, views: Sequence[View]) -> dict[str, Tensor]:
        """The fields of all."""
        return {name: values for reader in self.readers for name, values in reader(views).items()}
