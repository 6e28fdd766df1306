"""Spectrum along the channels (paper, Eq. 1-2).

Not to be confused with the spatial transform in `losses/spectral.py`. Letters: B batch, C channels,
H W grid.
"""

import numpy as np
import torch
from torch import Tensor

from distill_dynamics.dynamics.measures.entropy import CHUNK


def channel_spectrum(x: Tensor) -> Tensor:
    """x [B, C, H, W] → [C]: mean over B, H, W of |F[k]|, in the units of x.

    F[k] = 1/C Σ_c x[c] exp(-2πi kc/C), the discrete Fourier transform along the channels (Eq. 1), and
    its magnitude averaged (Eq. 2). In numpy: `np.abs(np.fft.fft(x, axis=1) / C).mean((0, 2, 3))`.
    The input is real, so entry C - k equals entry k; entry 0 is the mean over B, H, W of |mean over C|.
    Half precision is computed in float32.
    """
    return image_spectra(x).mean(0)


def image_spectra(x: Tensor) -> Tensor:
    """x [B, C, H, W] → [B, C]: `channel_spectrum` of each image alone."""
    images = max(1, CHUNK // max(1, x[:1].numel()))
    half = torch.cat([_half_spectra(part) for part in x.split(images)])
    return torch.cat([half, half[:, 1 : (x.shape[1] + 1) // 2].flip(1)], dim=1)


def _half_spectra(x: Tensor) -> Tensor:
    x = x if x.dtype == torch.float64 else x.float()
    spectra = torch.fft.rfft(x.flatten(2), dim=1, norm="forward")
    if x.device.type == "cpu" and not spectra.requires_grad:  # torch's abs takes as long as the transform
        return torch.from_numpy(np.abs(spectra.numpy())).mean(2)
    return spectra.abs().mean(2)
