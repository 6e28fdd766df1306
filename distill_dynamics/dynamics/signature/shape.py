"""The shape of one entropy curve: where it is lowest, how far it falls and rises, whether it is a U.

Letters: L layers, N images, R resamples.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from distill_dynamics.dynamics.profile import FloatArray, Profile
from distill_dynamics.dynamics.signature.resample import resampled_means, student_t

LEAST_DEPTH = 0.05
"""Bits that a U of the entropy has on both sides. Untrained ViTs, whose curves are flat, pass the tests of
chance with up to 0.033 bits (`notebooks/study`): as sure, and of no meaning."""


@dataclass(frozen=True)
class Signature:
    """Shape of the entropy curve of one Profile.

    Layers are given by their block numbers, `Profile.blocks`.
    Uncertainties come from resampling the images, layers kept together; they are NaN for fewer than two.
    They say how the curve would differ with other images, not with another training.
    """

    nadir: int
    """Layer of the lowest entropy; the first one of several."""
    nadir_se: float
    """Standard deviation of the nadir over resamples, in blocks."""
    depth_left: float
    """First layer's entropy minus the nadir's, bits, ≥ 0: what the compression phase takes away."""
    depth_left_se: float
    """Standard error of `depth_left` over images, bits."""
    depth_right: float
    """Last layer's entropy minus the nadir's, bits, ≥ 0: what the expansion phase adds."""
    depth_right_se: float
    """Standard error of `depth_right` over images, bits."""
    depth: float
    """The smaller of the two: depth of the U, bits; 0 when the nadir is at an end."""
    depth_se: float
    """Standard error of `depth` over images, bits."""
    u_shaped: bool | None
    """Whether the curve falls and rises again by more than chance would have it, and by `LEAST_DEPTH`; see
    `signature`. None where that is unknown: for fewer than two images, and where a layer's entropy is not."""
    magnitude_nadir: float
    """Layer of the lowest activation magnitude; NaN where it was not measured."""
    magnitude_agrees: bool | None
    """Whether both curves are U-shaped, their nadirs at most max(1, L / 10) layers apart; None where one of
    the shapes is unknown. Under a global value range this is weak evidence: entropy then contains log2 of
    the layer's scale, which magnitude is."""
    compression: tuple[int, int] | None
    """First and last block of the compression phase (paper, Section 3.1); None where there is no U."""
    expansion: tuple[int, int] | None
    """The same of the expansion phase, which begins where compression ends."""


def signature(profile: Profile) -> Signature:
    """Describe the entropy curve of a Profile.

    A curve is U-shaped if its nadir is at neither end, each side is deeper than t of its standard errors and
    at least 0.05 bits deep (`LEAST_DEPTH`; the magnitude, which has other units, has no least depth), and on
    neither side the curve moves back by more than half of that side's depth (a second dip). For three
    layers t is Student's at 2.5 %, with N - 1 degrees of freedom; with more, the nadir is the lowest of L - 2
    candidates, which noise alone makes deep, and the level is 2.5 % / (L - 2): t = 3.3 for L = 24 and N = 32.
    Of few images little is certain: two or three make hardly any curve a U, and of one the shape is unknown.
    A curve that is monotone, flat, shallow, lost in its noise or of two dips is no U.

    Standard errors come from R = 1000 bootstrap resamples of the images, drawn with a fixed seed (equal
    Profiles, equal signatures), each with its own nadir; those of depths are scaled by √(N / (N - 1)), as the
    standard error of a mean is.
    """
    count, blocks = len(profile.layers), profile.blocks
    resampled = resampled_means(np.hstack([profile.entropy_images, profile.magnitude_images]))
    images = len(profile.entropy_images)
    entropy = _read(profile.entropy, resampled[:, :count], images, LEAST_DEPTH)
    magnitude = _read(profile.magnitude, resampled[:, count:], images, 0.0)
    near = abs(entropy.nadir - magnitude.nadir) <= max(1, count / 10)
    known = entropy.u_shaped is not None and magnitude.u_shaped is not None
    first, nadir, last = (int(blocks[row]) for row in (0, entropy.nadir, -1))
    return Signature(
        nadir=nadir,
        nadir_se=float(blocks[entropy.nadirs].std()) if len(entropy.nadirs) else np.nan,
        depth_left=entropy.sides[0],
        depth_left_se=entropy.side_errors[0],
        depth_right=entropy.sides[1],
        depth_right_se=entropy.side_errors[1],
        depth=min(entropy.sides),
        depth_se=entropy.depth_se,
        u_shaped=entropy.u_shaped,
        magnitude_nadir=float(blocks[magnitude.nadir]) if np.isfinite(profile.magnitude).all() else np.nan,
        magnitude_agrees=bool(entropy.u_shaped and magnitude.u_shaped and near) if known else None,
        compression=(first, nadir) if entropy.u_shaped else None,
        expansion=(nadir, last) if entropy.u_shaped else None,
    )


class _Reading(NamedTuple):
    nadir: int  # its row
    nadirs: NDArray[np.int64]  # [R] those of the resamples; none for fewer than two images
    sides: tuple[float, float]
    side_errors: tuple[float, float]
    depth_se: float
    u_shaped: bool | None


def _read(curve: FloatArray, resampled: FloatArray, images: int, least: float) -> _Reading:
    """A curve [L] and its resamples [R, L] → where and how deep it dips; see `signature`."""
    nadir = int(curve.argmin())
    sides = float(curve[0] - curve[nadir]), float(curve[-1] - curve[nadir])
    if images < 2:
        return _Reading(nadir, np.empty(0, int), sides, (np.nan, np.nan), np.nan, None)
    scale = np.sqrt(images / (images - 1))
    depths = resampled[:, [0, -1]] - resampled.min(axis=1, keepdims=True)
    errors = depths.std(axis=0) * scale
    t = student_t(0.025 / max(1, len(curve) - 2), images - 1)
    back = _largest_rise(curve[: nadir + 1]), _largest_rise(curve[: nadir - len(curve) - 1 : -1])
    deep = [
        side > t * error and side >= least and side > 2 * rise
        for side, error, rise in zip(sides, errors, back, strict=True)
    ]
    return _Reading(
        nadir,
        resampled.argmin(axis=1),
        sides,
        (float(errors[0]), float(errors[1])),
        float(depths.min(axis=1).std() * scale),
        0 < nadir < len(curve) - 1 and all(deep) if np.isfinite(curve).all() else None,
    )


def _largest_rise(curve: FloatArray) -> float:
    """Most that a later value is above an earlier one; 0 for a curve that only falls."""
    return float((curve - np.minimum.accumulate(curve)).max())
