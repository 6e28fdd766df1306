"""Activation magnitude (paper, Eq. 6), and what massive activations are told by.

Letters: B batch, C channels, H W grid.
"""

import torch
from torch import Tensor


def activation_magnitude(x: Tensor) -> Tensor:
    """x [B, C, H, W] → scalar: mean |x|, in the units of x. Half precision is computed in float32."""
    return image_magnitudes(x).mean()


def image_magnitudes(x: Tensor) -> Tensor:
    """x [B, C, H, W] → [B]: `activation_magnitude` of each image alone."""
    x = x if x.dtype == torch.float64 else x.float()
    return x.abs().flatten(1).mean(1)


def image_medians(x: Tensor) -> Tensor:
    """x [B, C, H, W] → [B]: median |x| of each image; the lower of the two in the middle, as torch has it."""
    x = x if x.dtype == torch.float64 else x.float()
    return x.abs().flatten(1).median(1).values


def image_peaks(x: Tensor) -> Tensor:
    """x [B, C, H, W] → [B, 2]: of each image the largest |x|, and its channel from 0."""
    x = x if x.dtype == torch.float64 else x.float()
    peak, channel = x.abs().amax((2, 3)).max(1)
    return torch.stack([peak, channel.to(peak)], dim=1)
