"""How far a student's curves are from its teacher's. Letter: L layers."""

from dataclasses import dataclass

import numpy as np

from distill_dynamics.dynamics.profile import FloatArray, Profile
from distill_dynamics.dynamics.signature.spectrum import spectral_flatness


@dataclass(frozen=True)
class Gap:
    """How far a student's curves are from its teacher's, at matched relative depth.

    First layer on first, last on last, straight lines between layers, compared at as many equidistant
    depths as the deeper of the two has layers. Entropy and magnitude depend on the scale of the activations:
    a student of another width or normalisation can be far away and yet of the same shape.
    """

    entropy_distance: float
    """Root mean square of student minus teacher, bits; each has its own bins, unless the range was given."""
    entropy_shape_distance: float
    """The same once each curve's mean over depth is taken away, bits."""
    magnitude_distance: float
    """Root mean square of log2(student / teacher): 1 is a factor of two."""
    flatness_distance: float
    """Root mean square of the difference of `spectral_flatness`."""
    nadir_shift: float
    """Relative depth (0 first layer, 1 last) of the student's lowest entropy minus the teacher's."""


def gap(student: Profile, teacher: Profile) -> Gap:
    """Compare a student with its teacher; see `Gap`."""
    pair = (student, teacher)
    steps = max(len(profile.layers) for profile in pair)
    entropies = [_at_depths(profile.entropy, steps) for profile in pair]
    with np.errstate(divide="ignore", invalid="ignore"):
        scales = [_at_depths(np.log2(profile.magnitude), steps) for profile in pair]
    flatness = [_at_depths(spectral_flatness(profile), steps) for profile in pair]
    nadirs = [int(p.entropy.argmin()) / max(1, len(p.layers) - 1) for p in pair]
    return Gap(
        entropy_distance=_distance(*entropies),
        entropy_shape_distance=_distance(*(curve - curve.mean() for curve in entropies)),
        magnitude_distance=_distance(*scales),
        flatness_distance=_distance(*flatness),
        nadir_shift=nadirs[0] - nadirs[1],
    )


def _at_depths(curve: FloatArray, steps: int) -> FloatArray:
    """[L] → [steps]: the curve at equidistant relative depths."""
    return np.interp(np.linspace(0, 1, steps), np.linspace(0, 1, len(curve)), curve)


def _distance(a: FloatArray, b: FloatArray) -> float:
    distance = float(np.sqrt(np.mean((a - b) ** 2)))
    return distance if np.isfinite(distance) else np.nan
