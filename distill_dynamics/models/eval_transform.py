"""How images become a model's input: normalisation, size, crop."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from distill_dynamics.errors import UserError


class EvalTransform(NamedTuple):
    """How images are brought to a model's size for evaluation; timm's words (`data.transforms`)."""

    image_size: tuple[int, int]
    """Height and width."""
    crop_pct: float
    """The shorter side is resized to `image_size / crop_pct` first."""
    interpolation: str
    crop_mode: str = "center"
    """What is done with the longer side: "center", "squash" or "border"."""


def check_normalisation(name: str, mean: Sequence[float], std: Sequence[float], channels: int) -> None:
    """UserError for numbers that images of so many channels, in 0 to 1, are not normalised with."""
    for key, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, channels):
            raise UserError(f"{name}: {key} has {len(values)} numbers for {channels} channels")
        if not all(map(math.isfinite, values)) or (key == "std" and min(values) <= 0):
            raise UserError(f"{name}: {key} {list(values)} must be finite, and std positive")
    if max(map(abs, mean)) > 1:
        raise UserError(f"{name}: mean {list(mean)} is for pixels in 0 to 1: divide by 255")


def per_channel(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """One number a channel; any other number of values is averaged."""
    if len(values) == channels:
        return tuple(float(v) for v in values)
    return (sum(values) / len(values),) * channels
