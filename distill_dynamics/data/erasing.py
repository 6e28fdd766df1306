"""Random erasing in two steps: timm draws rectangles and noise, and they are laid over images later.

A worker draws, from numbers keyed by the view; a device erases, after it has normalised. So the noise is the
same on every device, and only erased pixels travel as numbers of 4 bytes.

Letters: B batch, C channels, H W grid.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Box(NamedTuple):
    """A rectangle of an image of a batch, in pixels."""

    image: int
    top: int
    left: int
    height: int
    width: int


class Canvas:
    """Looks like an image [C,H,W] to timm's `RandomErasing`, and takes note of what is written on it.

    One serves a batch: `image`, to be set before each draw, is the place of the image in it.
    """

    dtype = torch.float32

    def __init__(self, shape: tuple[int, ...]):
        self.shape = shape
        self.image = 0
        self.boxes: list[Box] = []
        self.pixels: list[Tensor] = []

    def size(self) -> tuple[int, ...]:
        """C, H, W."""
        return self.shape

    def __setitem__(self, where: tuple[slice, slice, slice], pixels: Tensor) -> None:
        _, rows, columns = where
        height, width = rows.stop - rows.start, columns.stop - columns.start
        self.boxes.append(Box(self.image, rows.start, columns.start, height, width))
        self.pixels.append(pixels.expand(self.shape[0], height, width).flatten())

    @property
    def noise(self) -> Tensor:
        """The float32 pixels [C, height, width] of each box, one after the other."""
        return torch.cat(self.pixels) if self.pixels else torch.empty(0)


def erase(images: Tensor, boxes: Sequence[Box], noise: Tensor) -> Tensor:
    """Lays the `noise` of a `Canvas` over normalised images [B,C,H,W], in place and in its order."""
    sizes = [images.shape[1] * box.height * box.width for box in boxes]
    for (image, top, left, height, width), pixels in zip(boxes, noise.split(sizes), strict=True):
        images[image, :, top : top + height, left : left + width] = pixels.view(-1, height, width)
    return images
