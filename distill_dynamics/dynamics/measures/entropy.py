"""Shannon entropy of the channel values at each position (paper, Eq. 3-5).

Letters: B batch, C channels, H W grid, P = H·W positions.
"""

import math

import torch
from torch import Tensor

CHUNK = 2**19
"""Values (or histogram cells) at a time on a CPU: few enough for its cache, enough to share among threads."""
GPU_CHUNK = 2**24
"""On a GPU, untested: a layer of 32 images at once, in a dozen kernels and up to half a gigabyte."""


@torch.no_grad()
def channel_entropy(x: Tensor, value_range: tuple[float, float], bins: int = 100) -> Tensor:
    """x [B, C, H, W] → entropy [B, H, W] in bits, float32, of the C channel values at each position.

    The values are counted in `bins` equal bins over `value_range` = (lo, hi); with h_n the count of
    bin n and p_n = h_n / C (Eq. 3), E = -Σ p_n log2 p_n over the bins with h_n > 0 (Eq. 4). In numpy:

        for b, h, w in np.ndindex(B, H, W):
            count, _ = np.histogram(x[b, :, h, w].clip(lo, hi), bins, (lo, hi))
            p = count[count > 0] / C
            E[b, h, w] = -(p * np.log2(p)).sum()

    Bins are closed on the left, the last one on both sides. Values outside the range count in the bins
    at its ends. 0 ≤ E ≤ log2 min(C, bins); lo = hi means one bin, so E = 0 whatever the values.
    The bin of a value is computed in float64 (float32 on MPS, which has no other): it is numpy's for
    every float32 value, unless the value equals a bin edge to rounding. No gradient flows.

    Raises:
        ValueError: NaN in x, lo > hi, a limit that is not finite, bins < 1, or x without four dimensions.
    """
    low, high = (float(limit) for limit in value_range)
    if not (-float("inf") < low <= high < float("inf")):
        raise ValueError(f"value_range must be two finite numbers lo <= hi, not {value_range!r}")
    if bins < 1:
        raise ValueError(f"bins must be at least 1, not {bins}")
    if x.ndim != 4:
        raise ValueError(f"expected x [B, C, H, W], got {list(x.shape)}")
    if x.device.type != "cpu" and x.numel() and x.max().isnan():
        raise ValueError(_NAN)

    batch, channels, height, width = x.shape
    x = x.flatten(2)
    # -p log2 p by count: a position's entropy is a sum of C+1 possible terms, exact at 0 and at C.
    term = torch.special.entr(torch.arange(channels + 1, dtype=torch.float64) / channels)
    term = (term / torch.tensor(2.0, dtype=torch.float64).log()).float().to(x.device)

    entropy = torch.empty(batch, height * width, device=x.device)
    positions = max(1, (CHUNK if x.device.type == "cpu" else GPU_CHUNK) // max(channels, bins + 2))
    images = max(1, positions // max(1, height * width))
    for out_images, x_images in zip(entropy.split(images), x.split(images), strict=True):
        for out, values in zip(out_images.split(positions, 1), x_images.split(positions, 2), strict=True):
            index = _cells_of(values, low, high, bins)
            # A cell on either side of the bins for what is beyond them.
            count_of = len(index), bins + 2, index.shape[2]
            rows, columns = (torch.arange(n, dtype=torch.int32, device=x.device) for n in count_of[::2])
            index.mul_(len(columns)).add_((math.prod(count_of[1:]) * rows)[:, None, None] + columns)
            # Of int32, which it counts in a fifth of the time that scatter_add_ takes.
            count = torch.bincount(index.flatten(), minlength=math.prod(count_of)).view(count_of)
            count[:, 1] += count[:, 0]
            count[:, bins] += count[:, bins + 1]
            out.copy_(term.take(count[:, 1:-1]).sum(1))
    return entropy.view(batch, height, width)


def image_entropies(x: Tensor, value_range: tuple[float, float], bins: int = 100) -> Tensor:
    """x [B, C, H, W] → [B]: `channel_entropy` of each image, mean over its positions, bits (Eq. 5)."""
    return channel_entropy(x, value_range, bins).mean((1, 2))


_NAN = "x has NaN, which is in no bin"


def _cells_of(x: Tensor, low: float, high: float, bins: int) -> Tensor:
    """x [B, C, P] → [B, C, P] int32: the bin of each value, from 1; 0 or bins + 1 beyond the range.

    In float32 at first, and again in float64 for each position with a value that rounding may have carried
    over an edge: of 384 channels in 100 bins, one position in forty. On a GPU all is done in float64 at
    once, as the detour would be more kernels and a wait (untested there). Raises ValueError for NaN on a CPU.
    """
    if x.device.type != "cpu":
        return _exactly(x, low, high, bins)
    scale = bins / (high - low) if low < high else math.inf
    # Four roundings, each of at most 2^-24 of the largest number that occurs; a fifth for float64 input.
    doubt = 5 * 2**-24 * scale * max(high - low, abs(low), abs(high))
    if not doubt <= 0.1 or not 1e-30 < scale < 1e30:
        return _checked(x, low, high, bins)
    one_more = torch.tensor(1 - low * scale, dtype=torch.float32)  # then floor is int()
    t = torch.add(one_more, x.float(), alpha=scale)
    t.clamp_(0.5, bins + 1.5)  # beyond the range: in no doubt, but next to its ends
    index = t.int()
    t.frac_()
    doubtful = ~((t.amin(1) >= doubt) & (t.amax(1) <= 1 - doubt))  # so is NaN
    image, position = doubtful.nonzero(as_tuple=True)
    if 8 * len(image) > doubtful.numel():  # zeros after a ReLU are at an edge, all of them
        return _checked(x, low, high, bins)
    index[image, :, position] = _checked(x[image, :, position], low, high, bins)
    return index


def _checked(x: Tensor, low: float, high: float, bins: int) -> Tensor:
    if x.numel() and x.max().isnan():
        raise ValueError(_NAN)
    return _exactly(x, low, high, bins)


def _exactly(x: Tensor, low: float, high: float, bins: int) -> Tensor:
    if low == high:
        return torch.ones_like(x, dtype=torch.int32)
    precise = torch.float32 if x.device.type == "mps" else torch.float64
    return (x.to(precise) - low).div_(high - low).mul_(bins).clamp_(0, bins - 1).int().add_(1)
