"""Activation magnitude (paper, Eq. 6), and what massive activations are told by.

Letters: B batch, C channels, H W grid.
"""

import torch
from torch import Tensor


def activation_magnitude(x: Tensor) -> Tensor:
    """x [B, C, H, W] → scalar: mean |x|, in the units of x. Half precision is computed in float32."""
    return _absolute(x).flatten(1).mean(1).mean()


@torch.no_grad()
def image_magnitudes(x: Tensor) -> Tensor:
    """x [B, C, H, W] → [B, 4]: of each image mean, median and largest |x|, and the largest one's channel.

    Channels count from 0. The median is the lower of the two in the middle, as torch has it. x has no NaN.
    """
    sizes = _absolute(x)
    peak, channel = sizes.amax((2, 3)).max(1)
    sizes = sizes.flatten(1)
    mean = sizes.mean(1)
    middle = (sizes.shape[1] - 1) // 2
    if x.device.type == "cpu":  # numpy selects a tenth as long as torch.median, which agrees to the bit
        sizes.numpy().partition(middle, axis=1)
        median = sizes[:, middle]
    else:
        median = sizes.sort(1).values[:, middle]  # torch.median has no deterministic form on a GPU
    return torch.stack([mean, median, peak, channel.to(peak)], dim=1)


def _absolute(x: Tensor) -> Tensor:
    return (x if x.dtype == torch.float64 else x.float()).abs()
