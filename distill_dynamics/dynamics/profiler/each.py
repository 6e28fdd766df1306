"""The same for each layer, a layer a core."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


def each(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """`function` of each item, in as many threads as torch has, each of which computes on one core.

    LAPACK finds the eigenvalues of a layer (384 channels) no faster on two cores than on one.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # of MKL's, for all threads of this process
    try:
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(function, items))
    finally:
        torch.set_num_threads(threads)
