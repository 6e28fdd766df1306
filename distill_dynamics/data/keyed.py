"""Randomness computed from a key, never stored: the order of an epoch and every augmented view.

A run's order is a function of (seed, epoch), and a view of (seed, epoch, image, repeat). Nothing has to be
saved for a resumed run to draw what an uninterrupted one would have drawn, whatever the number of
workers, ranks or images drawn before.
"""

import random
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from timm.data.distributed_sampler import RepeatAugSampler
from torch.utils.data import DistributedSampler

NO_IMAGE = -1
"""The index that `EvalSampler` gives to the short ranks in place of an image."""


class Key(NamedTuple):
    """Which view of which image: together with the run's seed, everything that its pixels depend on."""

    epoch: int
    image: int
    repeat: int


class View(NamedTuple):
    """One of an image's fixed views (`ImageData.views`), whatever the epoch."""

    view: int
    image: int


def _digest(key: tuple[int, ...], size: int) -> bytes:
    """A hash of the whole key, so that neighbouring seeds and epochs have nothing in common."""
    return blake2b(struct.pack(f"<{len(key)}q", *key), digest_size=size).digest()


def mixed(*key: int) -> int:
    """One 64-bit number from a key of integers."""
    return int.from_bytes(_digest(key, 8), "little")


def seed_generators(*key: int) -> None:
    """Seeds Python's, numpy's and torch's (CPU) global generators from a key of integers.

    All three, because timm and torchvision draw from all three. About 8 microseconds;
    `torch.manual_seed` alone, which visits every accelerator, takes 20 times that.
    """
    for_python, for_torch, for_numpy = struct.unpack("<QQI", _digest(key, 20))
    random.seed(for_python)
    torch.default_generator.manual_seed(for_torch)
    np.random.seed(for_numpy)  # noqa: NPY002 - timm draws from numpy's global generator


@contextmanager
def kept_generators() -> Iterator[None]:
    """Puts the three global generators back as they were, also after an error."""
    python, numpy, torch_ = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_rng_state(torch_)


class KeyedSampler(DistributedSampler[Key]):
    """The training order of one rank: a new permutation for each (seed, epoch), shared out over the ranks.

    The layout is torch's `DistributedSampler` (the tail that does not divide is dropped), or timm's
    `RepeatAugSampler` for `repeats` > 1: each image comes `repeats` times, each time on another rank, and an
    epoch is still about as long as the data (so it sees only 1 in `repeats` images; timm also rounds it
    down to a multiple of 256). Both seed from a single number; they get a mix of seed and epoch,
    where torch alone would add them, making epoch 1 of seed 0 the same as epoch 0 of seed 1.

    `multiple` cuts each rank's share to a whole number of so many views. As views are dealt out to the ranks
    one by one, the first n x world of them are the same for any number of ranks.

    `seen` is (epoch, n): of that epoch, the first n views of this rank's share are left out. The length is
    that of a whole epoch all the same.

    It is a `DistributedSampler` so that Lightning leaves it alone, whatever `use_distributed_sampler` says.
    """

    def __init__(
        self, size: int, *, seed: int, rank: int = 0, world: int = 1, repeats: int = 1, multiple: int = 1
    ):
        images = range(size)
        super().__init__(images, num_replicas=world, rank=rank, seed=seed, drop_last=True)  # type: ignore[arg-type]
        self.repeats = repeats
        self.multiple = multiple
        self.seen = (0, 0)
        self.order = (
            DistributedSampler(images, num_replicas=world, rank=rank, drop_last=True)  # type: ignore[arg-type]
            if repeats == 1
            else RepeatAugSampler(images, num_replicas=world, rank=rank, num_repeats=repeats)
        )

    def __iter__(self) -> Iterator[Key]:
        self.order.set_epoch(mixed(self.seed, self.epoch))
        epoch, seen = self.seen
        start = seen if epoch == self.epoch else 0
        for turn, image in enumerate(islice(self.order, start, len(self)), start):
            # Copies of an image lie side by side in the order before it is dealt out to the ranks.
            yield Key(self.epoch, image, (self.rank + turn * self.num_replicas) % self.repeats)

    def __len__(self) -> int:
        return len(self.order) // self.multiple * self.multiple


class EvalSampler(DistributedSampler[int]):
    """Every image exactly once: rank r gets r, r + world, ...; short ranks get `NO_IMAGE` at the end.

    So every rank has the same number of batches, and nothing is counted twice. The first `seen` of this
    rank's are left out; the length is that of all.
    """

    def __init__(self, size: int, *, rank: int = 0, world: int = 1):
        super().__init__(range(size), num_replicas=world, rank=rank, shuffle=False)  # type: ignore[arg-type]
        self.size = size
        self.seen = 0

    def __iter__(self) -> Iterator[int]:
        for image in range(self.rank + self.seen * self.num_replicas, self.total_size, self.num_replicas):
            yield image if image < self.size else NO_IMAGE
