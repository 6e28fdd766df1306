"""How a student's entropy curve changes over the epochs of its training (paper, Section 5)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from distill_dynamics.dynamics.profile import Profile, standard_error
from distill_dynamics.dynamics.signature.resample import student_t
from distill_dynamics.dynamics.signature.shape import signature


@dataclass(frozen=True)
class Evolution:
    """How a student's entropy curve changes over training (paper, Section 5).

    "First" and "last" block are ends of the network; the beginning is the first probe after epoch 0, the end
    the last probe. Under a range measured anew at each probe, bits of different epochs are of different bins.
    """

    last_lowest_until: int | None
    """Epoch until which all probes have the last block as their lowest (late-layer suppression,
    Section 5.2); None if not at the beginning."""
    last_rises_from: int | None
    """Epoch from which the last block's entropy never falls again; None if it falls to the end."""
    last_rebound: float
    """The last block's entropy at the end minus its lowest over epochs, bits (Section 5.4)."""
    last_change: float
    """The last block's entropy at the end minus that at the beginning, bits."""
    first_change: float
    """The same of the first block: negative is the early-layer drop of Section 5.3."""
    nadir_change: float
    """Block of the lowest entropy at the end minus that at the beginning."""
    u_since: int | None
    """Epoch since which every probe is a U (`Signature.u_shaped`); None if the last one is not."""


def evolution(students: Sequence[Profile]) -> Evolution:
    """Describe the probes of one training, epoch 0 and Profiles of no epoch left aside; see `Evolution`."""
    trained = sorted((p for p in students if p.epoch), key=lambda profile: profile.epoch or 0)
    if not trained:
        return Evolution(None, None, np.nan, np.nan, np.nan, np.nan, None)
    epochs = [int(profile.epoch or 0) for profile in trained]
    last = np.array([profile.entropy[-1] for profile in trained])
    nadirs = [int(profile.entropy.argmin()) for profile in trained]
    lowest = [0 < nadir == len(p.layers) - 1 for nadir, p in zip(nadirs, trained, strict=True)]
    suppressed = lowest.index(False) if False in lowest else len(lowest)
    rising = _trailing([step >= 0 for step in np.diff(last)])
    rising = rising if last[-1] > last[-1 - rising] else 0  # level is not rising
    u_shaped = _trailing([bool(signature(profile).u_shaped) for profile in trained])
    return Evolution(
        last_lowest_until=epochs[suppressed - 1] if suppressed else None,
        last_rises_from=epochs[-1 - rising] if rising else None,
        last_rebound=float(last[-1] - last.min()),
        last_change=float(last[-1] - last[0]),
        first_change=float(trained[-1].entropy[0] - trained[0].entropy[0]),
        nadir_change=float(trained[-1].blocks[nadirs[-1]] - trained[0].blocks[nadirs[0]]),
        u_since=epochs[-u_shaped] if u_shaped else None,
    )


def change_error(before: Profile, after: Profile, block: int) -> float:
    """Standard error over images of a block's entropy after minus before, bits; NaN for fewer than two.

    On the same images it is that of the differences image by image.
    """
    values = [profile.entropy_images[:, block] for profile in (before, after)]
    if before.probe_id and before.probe_id == after.probe_id and len(values[0]) == len(values[1]):
        return float(standard_error(values[1] - values[0]))
    return math.hypot(before.entropy_se[block], after.entropy_se[block])


class Rebound(NamedTuple):
    """How far the last block's entropy is above its lowest at the end of a training (Section 5.4)."""

    value: float
    """Bits."""
    error: float
    """Standard error over images."""
    certain: bool | None
    """Whether that is more than chance among the images would have it; None where no images tell."""


def rebound(trained: Sequence[Profile]) -> Rebound:
    """The last block at its last probe against its lowest: one picked of several, which t allows for."""
    low, end = min(trained, key=lambda profile: profile.entropy[-1]), trained[-1]
    value, error = float(end.entropy[-1] - low.entropy[-1]), change_error(low, end, -1)
    if math.isnan(error):
        return Rebound(value, error, None)
    t = student_t(0.025 / max(1, len(trained) - 1), len(end.entropy_images) - 1)
    return Rebound(value, error, value > t * error)


def _trailing(flags: Sequence[bool]) -> int:
    """How many at the end are true."""
    return next((i for i, flag in enumerate(reversed(flags)) if not flag), len(flags))
