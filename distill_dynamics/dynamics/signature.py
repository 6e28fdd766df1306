"""What an entropy curve says: where it is lowest, how deep, and whether it is a U.

Letters: L layers, N images, R resamples.
"""

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from distill_dynamics.dynamics.profile import FloatArray, Profile

RESAMPLES = 1000


@dataclass(frozen=True)
class Signature:
    """Shape of the entropy curve of one Profile.

    Layers count from 1 in the order of the Profile: block numbers where it holds all of them.
    Uncertainties come from resampling the images, layers kept together; they are NaN for one image.
    They say how the curve would differ with other images, not with another training.
    """

    nadir: int
    """Layer of the lowest entropy; the first one of several."""
    nadir_se: float
    """Standard deviation of the nadir over resamples, in layers."""
    depth_left: float
    """First layer's entropy minus the nadir's, bits, ≥ 0."""
    depth_right: float
    """Last layer's entropy minus the nadir's, bits, ≥ 0."""
    depth: float
    """The smaller of the two: depth of the U, bits; 0 when the nadir is at an end."""
    depth_se: float
    """Standard deviation of `depth` over resamples, bits."""
    u_shaped: bool
    """Whether the curve falls and rises again by more than chance would have it; see `signature`."""
    magnitude_nadir: int
    """Layer of the lowest activation magnitude."""
    magnitude_agrees: bool
    """Whether the two nadirs are at most max(1, L / 10) layers apart. Under a global value range this is
    weak evidence: entropy then contains log2 of the layer's scale, and magnitude is that scale."""


def signature(profile: Profile) -> Signature:
    """Describe the entropy curve of a Profile.

    A curve is U-shaped if its nadir is at neither end and each side is deeper than z of its standard
    errors. For three layers z = 1.96; with more, the nadir is the lowest of L - 2 candidates,
    which noise alone makes deep, and z is that of a probability of 2.5 % / (L - 2): 3.05 for L = 24.
    A curve that is monotone, flat or lost in its noise is no U, nor is one of a single image.

    Standard errors are standard deviations over R = 1000 bootstrap resamples of the images, drawn with a
    fixed seed (equal Profiles, equal signatures), each with its own nadir.
    """
    nadir, left, right = (values[0] for values in _shape(profile.entropy[None]))
    curves = _resampled_means(profile.entropy_images)
    nadirs, lefts, rights = _shape(curves)
    known = len(profile.entropy_images) > 1

    count = len(profile.layers)
    z = NormalDist().inv_cdf(1 - 0.025 / max(1, count - 2))
    u_shaped = known and 0 < nadir < count - 1 and left > z * lefts.std() and right > z * rights.std()
    magnitude_nadir = int(profile.magnitude.argmin())
    return Signature(
        nadir=int(nadir) + 1,
        nadir_se=float(nadirs.std()) if known else np.nan,
        depth_left=float(left),
        depth_right=float(right),
        depth=float(min(left, right)),
        depth_se=float(np.minimum(lefts, rights).std()) if known else np.nan,
        u_shaped=bool(u_shaped),
        magnitude_nadir=magnitude_nadir + 1,
        magnitude_agrees=bool(abs(magnitude_nadir - nadir) <= max(1, count / 10)),
    )


def _shape(curves: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Curves [R, L] → nadir (from 0), depth on the left, depth on the right, [R] each."""
    lowest = curves.min(axis=1)
    return curves.argmin(axis=1), curves[:, 0] - lowest, curves[:, -1] - lowest


def _resampled_means(values: FloatArray) -> FloatArray:
    """[N, L] → [R, L]: means of N rows drawn with replacement."""
    rng = np.random.default_rng(0)
    n = len(values)
    means = np.empty((RESAMPLES, values.shape[1]))
    for i in range(RESAMPLES):
        times_drawn = np.bincount(rng.integers(n, size=n), minlength=n)
        means[i] = times_drawn @ values / n
    return means
