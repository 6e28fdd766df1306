"""From the data's normalisation to a model's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Renormalise:
    """x ↦ scale·x + shift for [B, C, H, W]; x itself where mean and std are equal."""

    def __init__(
        self,
        from_mean: Sequence[float],
        from_std: Sequence[float],
        to_mean: Sequence[float],
        to_std: Sequence[float],
    ) -> None:
        self.same = tuple(from_mean) == tuple(to_mean) and tuple(from_std) == tuple(to_std)
        data_mean, data_std, mean, std = (
            torch.tensor(v).view(1, -1, 1, 1) for v in (from_mean, from_std, to_mean, to_std)
        )
        self.scale, self.shift = data_std / std, (data_mean - mean) / std

    def __call__(self, images: Tensor) -> Tensor:
        """The images, normalised for the model."""
        if self.same:
            return images
        if self.scale.device != images.device or self.scale.dtype != images.dtype:
            # Once: a copy to a GPU at every step would wait for it.
            self.scale, self.shift = self.scale.to(images), self.shift.to(images)
        return torch.addcmul(self.shift, images, self.scale)

    @staticmethod
    def nothing(images: Tensor) -> Tensor:
        """The images as they are: normalised for the model already."""
        return images
