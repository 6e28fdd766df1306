"""One training step: what it came to, and where its random numbers are from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from distill_dynamics.data.keyed import mixed


class Step(NamedTuple):
    """What a training step came to."""

    names: list[str]
    """Of the terms."""
    values: Tensor
    """[1 + terms]: the weighted total and each term, unweighted; without a graph."""
    untold_weights: dict[str, float]
    """β, the mean over pairs, of the terms whose config does not tell it: a schedule, a gate or a budget."""
    images: int
    batch_idx: int


@contextmanager
def keyed_draws(device: torch.device, *key: int) -> Iterator[None]:
    """Makes dropout, and what losses draw, a function of the key, so that a resumed run draws the same.

    The global state is put back. `torch.manual_seed`, which visits every device, would be slow.
    """
    on_cuda = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_cuda else []):
        torch.default_generator.manual_seed(mixed(*key))
        if on_cuda:
            torch.cuda.manual_seed(mixed(*key))
        yield
