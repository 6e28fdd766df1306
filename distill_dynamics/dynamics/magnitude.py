"""Activation magnitude (paper, Eq. 6). Letters: B batch, C channels, H W grid."""

import torch
from torch import Tensor


def activation_magnitude(x: Tensor) -> Tensor:
    """x [B, C, H, W] → scalar: mean |x|, in the units of x. Half precision is computed in float32."""
    return image_magnitudes(x).mean()


def image_magnitudes(x: Tensor) -> Tensor:
    """x [B, C, H, W] → [B]: `activation_magnitude` of each image alone."""
    x = x if x.dtype == torch.float64 else x.float()
    return x.abs().flatten(1).mean(1)
