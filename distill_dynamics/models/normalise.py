"""From a batch as the data give it to one that a model takes: size, channels, normalisation.

Letters: B batch, C channels, H W grid.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


class Renormalise:
    """[B, C, H, W] ↦ scale·x + shift, after resizing to `side` where that is given; x where nothing changes.

    One channel becomes as many as the model's mean has: grey is repeated, then normalised for each.
    """

    def __init__(
        self,
        from_mean: Sequence[float],
        from_std: Sequence[float],
        to_mean: Sequence[float],
        to_std: Sequence[float],
        side: int | None = None,
    ) -> None:
        self.side = side
        self.same = tuple(from_mean) == tuple(to_mean) and tuple(from_std) == tuple(to_std)
        data_mean, data_std, mean, std = (
            torch.tensor(v).view(1, -1, 1, 1) for v in (from_mean, from_std, to_mean, to_std)
        )
        self.scale, self.shift = data_std / std, (data_mean - mean) / std

    def __call__(self, images: Tensor) -> Tensor:
        """The images, as the model takes them."""
        if self.side is not None:
            images = resized(images, self.side)
        if self.same:
            return images
        if self.scale.device != images.device or self.scale.dtype != images.dtype:
            # Once: a copy to a GPU at every step would wait for it.
            self.scale, self.shift = self.scale.to(images), self.shift.to(images)
        return torch.addcmul(self.shift, images, self.scale)

    @staticmethod
    def nothing(images: Tensor) -> Tensor:
        """The images as they are: the model's already."""
        return images


def resized(images: Tensor, side: int) -> Tensor:
    """[B, C, H, W] → [B, C, side, side], bicubic with antialiasing, as Pillow; itself where it is so large.

    Values may overshoot, as pixels of a file, which are cut off at black and white, cannot.
    """
    if images.shape[-2:] == (side, side):
        return images
    wide = images if images.dtype.itemsize >= 4 else images.float()  # a CPU resizes no halves
    return F.interpolate(wide, (side, side), mode="bicubic", antialias=True).to(images.dtype)
