"""The probe set: the few images on which representations are watched, fixed before training.

Letters: N images, C channels, H W grid, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms import Compose

from distill_dynamics.data.batches import Unreadable
from distill_dynamics.data.sources import Source, UnreadableImage
from distill_dynamics.data.transforms import normalise
from distill_dynamics.errors import UserError


def draw_probe(targets: NDArray[np.integer], n: int, seed: int = 0) -> NDArray[np.int64]:
    """Indices [n] of a class-balanced draw from images with `targets` [N].

    Classes take turns, in random order, each giving one of its images at random, until n are drawn.
    So the counts of two classes differ by at most one, except where a class has no image left; and the
    first m of n indices are what asking for m would have given. The draw has its own generator.

    Raises UserError if n is not between 1 and N.
    """
    if not 1 <= n <= len(targets):
        most = f"; n_images is from 1 to {len(targets)}" if len(targets) else ""
        raise UserError(f"{n} probe images cannot be drawn from {len(targets)} images{most}")
    generator = np.random.default_rng(seed)
    images = generator.permutation(len(targets))
    classes, class_of = np.unique(targets[images], return_inverse=True)
    by_class = np.argsort(class_of, kind="stable")
    counts = np.bincount(class_of)
    turn = np.empty(len(targets), dtype=np.int64)  # how many of its class come before an image
    turn[by_class] = np.arange(len(targets)) - np.repeat(np.cumsum(counts) - counts, counts)
    place = generator.permutation(len(classes))[class_of]
    return images[np.lexsort((place, turn))[:n]]


@dataclass(frozen=True)
class ProbeSet:
    """Probe images before normalisation, so that every model can be shown them under its own mean and std."""

    indices: NDArray[np.int64]
    """[N], into the data set they were drawn from."""
    pixels: Tensor
    """uint8 [N,C,H,W]."""

    @property
    def probe_id(self) -> str:
        """16 hex digits of the SHA-256 of shape and pixels: the same images, the same curves."""
        digest = sha256(repr(tuple(self.pixels.shape)).encode())
        digest.update(self.pixels.contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def normalised(self, mean: Sequence[float], std: Sequence[float]) -> Tensor:
        """float32 [N,C,H,W], (pixels/255 - mean) / std for each channel."""
        return normalise(self.pixels, mean, std)


def probe_set(
    source: Source, to_pixels: Compose, n: int, seed: int, unreadable: Unreadable, at_most: bool = False
) -> ProbeSet:
    """`n` images of a source; where unreadable images are skipped, drawn anew without each that is met.

    With `at_most` all that can be read where they are fewer.
    """
    usable = np.arange(len(source.targets))
    while True:
        n = min(n, len(usable)) if at_most else n
        indices = usable[draw_probe(source.targets[usable], n, seed)]
        try:
            return ProbeSet(indices, torch.stack([to_pixels(source.image(int(i))) for i in indices]))
        except UnreadableImage as error:
            unreadable.report([str(error)], left=len(usable) - 1)
            usable = usable[usable != error.index]
