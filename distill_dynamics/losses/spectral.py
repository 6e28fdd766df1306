"""SpectralKD: the student's maps learn the spatial frequencies of the teacher's (Eq. 7).

The transform here runs over space, H and W. The one of `dynamics.spectrum` runs over channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill_dynamics.losses.maps import (
    at_least_float32,
    check_channels,
    match_grids,
    pool_last,
    refuses_pooling,
)


def spectral_kd(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Mean squared difference of the two maps' half spectra over H and W (Eq. 7).

    Maps [B, C_s, H_s, W_s] and [B, C_t, H_t, W_t] of the same images. Different grids are first pooled
    to (min H, min W), then the wider map along C to the narrower, both by adaptive averages. The slow
    form, on the maps so matched:

        def stacked(x):                                   # [2, B, C, H, W // 2 + 1]
            spectrum = torch.fft.rfft2(x, norm="ortho")
            return torch.stack([spectrum.real, spectrum.imag])
        F.mse_loss(stacked(student_map), stacked(teacher_map))

    Here no transform is taken, because the sum of squares over a spectrum is the sum of squares over
    space (Parseval), and the spectrum of a difference is the difference of the spectra. So Eq. 7 is a
    plain mean squared error but for one thing: the half spectrum counts the columns without a mirror
    image (constant along W and, for even W, alternating) as often as those that stand for two, so that
    they weigh double.

    The result is a scalar, computed in float32 at least, whatever autocast says. No gradient reaches
    the teacher. `ValueError` unless both are maps of equally many images.
    """
    with torch.autocast(student_map.device.type, enabled=False):
        student_map, teacher_map = match_grids(
            at_least_float32(student_map), at_least_float32(teacher_map.detach())
        )
        channels = min(student_map.shape[1], teacher_map.shape[1])
        difference = _pool_channels(student_map, channels) - _pool_channels(teacher_map, channels)

        width = difference.shape[3]
        whole_spectrum = difference.square().sum()
        unmirrored = difference.sum(3).square().sum() / width
        if width % 2 == 0:
            alternating = (difference[..., 0::2] - difference[..., 1::2]).sum(3)
            unmirrored = unmirrored + alternating.square().sum() / width
        half_spectrum = (whole_spectrum + unmirrored) / 2

        real_and_imaginary = 2 * difference[..., 0].numel() * (width // 2 + 1)
        return half_spectrum / real_and_imaginary


def _pool_channels(x: Tensor, channels: int) -> Tensor:
    """Average-pool [B, C, H, W] adaptively along C to `channels`; `x` itself where it has as many."""
    if x.shape[1] == channels:
        return x
    tokens = x.flatten(2).transpose(1, 2)
    pool = pool_last if refuses_pooling(x) else F.adaptive_avg_pool1d
    return pool(tokens, channels).transpose(1, 2).unflatten(2, x.shape[2:])


class SpectralKD(nn.Module):
    """`spectral_kd`, which has nothing to learn.

    Channels, where they are declared, are only checked: `ValueError` where a map has others.
    """

    floor = 0.0  # a student can give what is left of the pooled channels

    def __init__(self, student_channels: int | None = None, teacher_channels: int | None = None) -> None:
        super().__init__()
        self.channels = (student_channels, teacher_channels)

    def forward(self, student_map: Tensor, teacher_map: Tensor) -> Tensor:
        """Give the scalar loss of two maps [B, C, H, W]; the teacher's may be its `cacheable` part."""
        student_channels, teacher_channels = self.channels
        if teacher_map.shape[1:2] == student_map.shape[1:2]:
            teacher_channels = None
        check_channels(student_map, teacher_map, (student_channels, teacher_channels))
        return spectral_kd(student_map, teacher_map)

    def cacheable(self, student_map: Tensor, teacher_map: Tensor) -> Tensor:
        """All that the loss sees of the teacher's map: pooled to the smaller grid and the fewer channels.

        [B, min C, min H, min W], of maps as `forward` takes them; only the student map's shape counts.
        """
        _, pooled = match_grids(student_map, teacher_map)
        return _pool_channels(pooled, min(student_map.shape[1], teacher_map.shape[1]))
