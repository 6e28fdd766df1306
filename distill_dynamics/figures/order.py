"""Which Profiles can share one picture, and in which order."""

from collections.abc import Iterable, Sequence

import numpy as np

from distill_dynamics.dynamics.profile import Profile
from distill_dynamics.errors import UserError
from distill_dynamics.figures.style import named


def ordered(students: Sequence[Profile], best: Profile | None = None) -> list[Profile]:
    """The students by epoch, once it is certain that they can share one picture.

    Raises `ValueError` without students; `UserError` where depths differ, or where two students are of one
    epoch or several of none.
    """
    if not students:
        raise ValueError("no Profiles to draw: students is empty")
    first = students[0]
    for other in [*students[1:], *([best] if best else [])]:
        if len(other.layers) != len(first.layers):
            raise UserError(
                f"Profiles of different depth cannot share a figure: {named(first)} has "
                f"{len(first.layers)} layers, {named(other)} has {len(other.layers)}"
            )
    epochs = [profile.epoch for profile in students]
    if len(students) > 1 and (None in epochs or len(set(epochs)) < len(epochs)):
        raise UserError(f"each student Profile must be of an epoch of its own, got epochs {epochs}")
    return sorted(students, key=lambda profile: profile.epoch or 0)


def distinct(profiles: Iterable[Profile | None]) -> list[Profile]:
    """Each Profile once: runs of one teacher have its curve in common."""
    firsts: list[Profile] = []
    for profile in profiles:
        if profile is not None and not any(same_bins(profile, o) and alike(profile, o) for o in firsts):
            firsts.append(profile)
    return firsts


def alike(one: Profile, other: Profile) -> bool:
    """Whether both are of one model with the same weights, measured on the same images.

    The magnitude tells, which does not depend on the bins, and in equal bins the entropy; both within what
    another device may change: a thousandth.
    """
    if one.model != other.model or len(one.layers) != len(other.layers):
        return False
    near = np.allclose(one.magnitude, other.magnitude, rtol=1e-3, equal_nan=True)
    return bool(near) and (
        not same_bins(one, other) or np.allclose(one.entropy, other.entropy, atol=1e-3, equal_nan=True)
    )


def same_bins(one: Profile, other: Profile) -> bool:
    """Whether the bins of both come about in the same way, and are as many."""
    given = "explicit" in (one.range_mode, other.range_mode)
    return (one.range_mode, one.bins) == (other.range_mode, other.bins) and (
        not given or np.array_equal(one.value_range[0], other.value_range[0])
    )
