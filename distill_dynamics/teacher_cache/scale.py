"""How half precision holds any map.

Letters: B batch, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from distill_dynamics.losses.maps import at_least_float32


class Scale:
    """What a field's channels are like, so that half precision holds any map: stored is how they deviate.

    A channel may have a mean that is large beside its deviation, of which a loss that standardises sees the
    deviation alone; and activations may lie beyond 65,504, where half precision ends. What is stored of x is
    (x - centre) / spread, and its rounding is at most 1/2048 of that.
    """

    def __init__(self, centre: Sequence[float], spread: Sequence[float]) -> None:
        self.centre, self.spread = torch.tensor(centre), torch.tensor(spread)

    @classmethod
    def of(cls, sample: Tensor) -> Scale:
        """Each channel's mean and standard deviation in a sample [B, C, ...]."""
        channels = sample.double().transpose(0, 1).flatten(1)
        spread, centre = torch.std_mean(channels, dim=1, correction=0)
        # One that is still in the sample may move elsewhere.
        spread = spread.clamp(min=max(1e-3 * float(spread.square().mean().sqrt()), 1e-30))
        return cls(centre.tolist(), spread.tolist())

    def to_json(self) -> list[list[float]]:
        """Plain values, to call `Scale` with."""
        return [self.centre.tolist(), self.spread.tolist()]

    def stored(self, x: Tensor) -> Tensor:
        """[B, C, ...], as it lies in the cache once it is rounded."""
        centre, spread = self._like(x)
        return (at_least_float32(x) - centre) / spread

    def restored(self, x: Tensor) -> Tensor:
        """The opposite."""
        centre, spread = self._like(x)
        return torch.addcmul(centre, x.float(), spread)

    def _like(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.centre.device != x.device:  # once
            self.centre, self.spread = self.centre.to(x.device), self.spread.to(x.device)
        shape = (-1, *[1] * (x.ndim - 2))
        return self.centre.view(shape), self.spread.view(shape)
