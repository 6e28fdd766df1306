"""The ranges that the bins of the entropy divide. Letters: B images, C channels, H W grid, L layers."""

import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from distill_dynamics.dynamics.profile import FloatArray
from distill_dynamics.errors import UserError

RangeMode = Literal["global", "layer", "scaled"]
ValueRange = RangeMode | Sequence[float]


def given_range(value_range: ValueRange, depth: int) -> FloatArray | None:
    """[L, 2] where the range is two numbers, None where it is to be measured."""
    if isinstance(value_range, str) and value_range in get_args(RangeMode):
        return None
    try:
        low, high = (float(limit) for limit in value_range)
    except (TypeError, ValueError):
        low, high = math.nan, math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        names = ", ".join(f'"{name}"' for name in get_args(RangeMode))
        raise UserError(f"value_range must be {names} or two numbers lo < hi, not {value_range!r}")
    return np.tile([low, high], (depth, 1))


def bin_edges(low: FloatArray, high: FloatArray, magnitude: FloatArray, mode: str) -> FloatArray:
    """Range of each layer's bins [L, 2], from its lowest value, its highest and its magnitude [L]."""
    if mode == "layer":
        return np.stack([low, high], axis=1)
    unit = magnitude if mode == "scaled" else np.ones_like(magnitude)
    divisor = np.where(unit > 0, unit, 1)  # a layer that is 0 everywhere is so in any unit
    return unit[:, None] * [(low / divisor).min(), (high / divisor).max()]


def by_range(
    maps: list[Tensor], edges: list[FloatArray], measure: Callable[[Tensor, tuple[float, float]], Tensor]
) -> FloatArray:
    """L maps, and for each range its limits [L, 2] → [B, L, ranges] of a measure that gives [B]."""
    found = np.empty((len(maps[0]), len(maps), len(edges)))
    for i, limits in enumerate(edges):
        for j, (x, (low, high)) in enumerate(zip(maps, limits.tolist(), strict=True)):
            found[:, j, i] = to_numpy(measure(x, (low, high)))
    return found


def outside_fraction(x: Tensor, limits: tuple[float, float]) -> Tensor:
    """x [B, C, H, W] → [B] fraction of values outside the limits."""
    x = x if x.dtype == torch.float64 else x.float()
    return ((x < limits[0]) | (x > limits[1])).flatten(1).float().mean(1)


def to_numpy(x: Tensor) -> FloatArray:
    """As float64, without a gradient."""
    return x.detach().cpu().double().numpy()
