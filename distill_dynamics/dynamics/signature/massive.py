"""Massive activations: single values that stand out of their layer."""

from dataclasses import dataclass

import numpy as np

from distill_dynamics.dynamics.profile import Profile


@dataclass(frozen=True)
class MassiveActivations:
    """Where single values stand out most (Sun et al., 2024, arXiv:2402.17762)."""

    ratio: float
    """Largest |A| of an image over its median |A|, mean over images. Sun et al. call a value massive that
    is above 100 and about 1,000 times the median."""
    block: float
    """Number of the block where the ratio is largest."""
    channel: float
    """The channel, from 0, of that layer's largest |A|."""


def massive_activations(profile: Profile) -> MassiveActivations:
    """The layer whose largest value stands out most from its median; NaN without images.

    A layer where more than half of an image's values are zero (after a ReLU) has no ratio and is passed over.
    """
    if not {"peak", "median"} <= profile.curves.keys():
        return MassiveActivations(np.nan, np.nan, np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = (profile.curves["peak"] / profile.curves["median"]).T.reshape(len(profile.layers), -1)
    ratios = np.array([row.mean() if len(row) and np.isfinite(row).all() else -np.inf for row in ratios])
    row = int(ratios.argmax())
    if not np.isfinite(ratios[row]):
        return MassiveActivations(np.nan, np.nan, np.nan)
    return MassiveActivations(
        float(ratios[row]), float(profile.blocks[row]), float(profile.peak_channel[row])
    )
