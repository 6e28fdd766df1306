"""Training images as evaluation prepares them: what losses are fitted to before the first step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from distill_dynamics.data.transforms import normalise
from distill_dynamics.errors import UserError
from distill_dynamics.models.input_size import of_side, views_side

IMAGES = 1024
"""How many; all where there are fewer."""


class ReferenceImages(NamedTuple):
    """N of them, without augmentation, classes in equal shares; the same for any seed and any devices.

    Of the side of training views, so that a teacher is shown them as it is shown those.
    """

    pixels: Tensor
    """uint8 [N, C, H, W]."""
    targets: Tensor
    """[N]"""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    batch_size: int

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Images [B, C, H, W], normalised as the data are, and targets [B], on the CPU."""
        for some, targets in zip(*(x.split(self.batch_size) for x in self[:2]), strict=True):
            yield normalise(some, self.mean, self.std), targets


def reference_images(data: Any) -> ReferenceImages:
    """Draw them from a DataModule that is set up. UserError for one that has no probe set."""
    if not hasattr(data, "probe_set"):
        raise UserError(
            f"data: {type(data).__name__} has no probe_set, from whose training images a loss is fitted "
            "(write yours as a subclass of distill_dynamics.data.ImageData)"
        )
    drawn = data.probe_set(IMAGES, split="train", at_most=True, **of_side(data, views_side(data)))
    return ReferenceImages(
        drawn.pixels,
        torch.as_tensor(data.sources["train"].targets[drawn.indices]),
        data.mean,
        data.std,
        data.eval_batch_size,
    )


DrawnOnce = Callable[[], ReferenceImages]
"""Gives the images, which are read when they are first asked for."""


def drawn_once(data: Any) -> DrawnOnce:
    """What all that is fitted at one start shares, so that the files are read once, or not at all."""
    return cache(partial(reference_images, data))


def depend_on(data: Any) -> dict[str, Any]:
    """What they are a function of, beside what fixed views are."""
    return {"images at most": IMAGES, "crop_pct": data.crop_pct}
