"""What the curves say, as numbers: of one Profile, of a student beside its teacher, over the epochs.

`signature` reads the entropy, `spectrum_signature` the channel spectrum, `massive_activations` the largest
values; `gap` compares student and teacher; `evolution` follows a student. NaN (None for an epoch, or for a
yes or no) where something cannot be said. Pure numpy.
Letters: L layers, N images, R resamples, C channels, P power.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from distill_dynamics.dynamics.profile import FloatArray, Profile

RESAMPLES = 1000


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
    """Whether the curve falls and rises again by more than chance would have it; see `signature`. None where
    that is unknown: for fewer than two images, and where a layer's entropy is not known."""
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

    A curve is U-shaped if its nadir is at neither end, each side is deeper than t of its standard errors, and
    on neither side the curve moves back by more than half of that side's depth (a second dip). For three
    layers t is Student's at 2.5 %, with N - 1 degrees of freedom; with more, the nadir is the lowest of L - 2
    candidates, which noise alone makes deep, and the level is 2.5 % / (L - 2): t = 3.3 for L = 24 and N = 32.
    Of few images little is certain: two or three make hardly any curve a U, and of one the shape is unknown.
    A curve that is monotone, flat, lost in its noise or of two dips is no U.

    Standard errors come from R = 1000 bootstrap resamples of the images, drawn with a fixed seed (equal
    Profiles, equal signatures), each with its own nadir; those of depths are scaled by √(N / (N - 1)), as the
    standard error of a mean is.
    """
    count, blocks = len(profile.layers), profile.blocks
    resampled = _resampled_means(np.hstack([profile.entropy_images, profile.magnitude_images]))
    entropy = _read(profile.entropy, resampled[:, :count], len(profile.entropy_images))
    magnitude = _read(profile.magnitude, resampled[:, count:], len(profile.entropy_images))
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


def _read(curve: FloatArray, resampled: FloatArray, images: int) -> _Reading:
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
        side > t * error and side > 2 * rise for side, error, rise in zip(sides, errors, back, strict=True)
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


def student_t(tail: float, freedom: int) -> float:
    """Quantile of Student's distribution at 1 - `tail`, after Wallace (1959).

    Within 1 % from 10 degrees of freedom on; too large, so on the careful side, for fewer.
    """
    z = NormalDist().inv_cdf(1 - tail) * (8 * freedom + 3) / (8 * freedom + 1)
    return float(np.sqrt(freedom * np.expm1(z * z / freedom)))


@dataclass(frozen=True)
class SpectrumSignature:
    """The three phases of the channel spectrum (paper, Section 4.3), at the blocks of its Figure 3.

    Early, middle and late are means over the first two, the two in the middle and the last two layers (one
    each below six layers). All are NaN below three layers or where there is no spectrum.
    """

    flatness_early: float
    flatness_middle: float
    flatness_late: float
    """`spectral_flatness`: 1 is uniform, 0 is all power at one frequency."""
    low_early: float
    low_middle: float
    low_late: float
    """`band_energy`, lowest third of the frequencies: 1/3 is uniform."""
    high_early: float
    high_middle: float
    high_late: float
    """`band_energy`, highest third."""
    energy_early: float
    energy_middle: float
    energy_late: float
    """Power summed over k = 1 .. C/2, in squared units of the activations."""
    three_phases: bool | None
    """Whether the spectrum is uniform, low-pass and uniform again: the flatness falls and returns, by more
    than its error over images (Student's t at 2.5 %) on each side, the share of low frequencies is largest in
    the middle, and late energy is above early energy. The standard error is an upper bound, as Profiles keep
    none across frequencies: in doubt the answer is no. None where a number above is NaN, and for fewer than
    two images."""


def spectrum_signature(profile: Profile) -> SpectrumSignature:
    """Describe the channel spectra of a Profile; see `SpectrumSignature`."""
    depth = len(profile.layers)
    width = 2 if depth >= 6 else 1
    middle = (depth - width) // 2
    phases = {
        "early": slice(0, width),
        "middle": slice(middle, middle + width),
        "late": slice(depth - width, depth),
    }
    if depth < 3:
        phases = dict.fromkeys(phases, slice(0, 0))
    low, high = band_energy(profile)
    curves = {
        "flatness": spectral_flatness(profile),
        "low": low,
        "high": high,
        "energy": np.array([_power(s).sum() if len(s) > 1 else np.nan for s in profile.spectrum]),
    }
    found = {
        f"{name}_{phase}": float(curve[rows].mean()) if len(curve[rows]) else np.nan
        for name, curve in curves.items()
        for phase, rows in phases.items()
    }
    error = _flatness_se(profile)
    bound = {phase: error[rows].mean() if len(error[rows]) else np.nan for phase, rows in phases.items()}
    images = len(profile.entropy_images)
    t = student_t(0.025, images - 1) if images > 1 else np.nan
    low_pass_between = all(
        found[f"flatness_{end}"] - found["flatness_middle"] > t * (bound[end] + bound["middle"])
        and found["low_middle"] > found[f"low_{end}"]
        for end in ("early", "late")
    )
    three_phases = bool(low_pass_between and found["energy_late"] > found["energy_early"])
    known = images > 1 and np.isfinite(list(found.values())).all()
    return SpectrumSignature(**found, three_phases=three_phases if known else None)


def spectral_flatness(profile: Profile) -> FloatArray:
    """[L]: geometric over arithmetic mean of the power P[k] = S[k]² at k = 1 .. C/2; between 0 and 1.

    Wiener entropy (Gray & Markel, 1974) of the spectrum along the channels. k = 0, the mean over channels, is
    left out. Independent of the scale of the activations, unlike entropy under a global range. NaN below two
    channels and for a layer that is zero.
    """
    found = []
    with np.errstate(divide="ignore", invalid="ignore"):
        for power in map(_power, profile.spectrum):
            found.append(np.exp(np.log(power).mean()) / power.mean() if len(power) else np.nan)
    return np.array(found)


def band_energy(profile: Profile) -> tuple[FloatArray, FloatArray]:
    """[L] and [L]: share of the power at k = 1 .. C/2 that lies at k/C ≤ 1/6, and at k/C > 1/3.

    The lowest and the highest third of the frequencies: 1/3 each for a uniform spectrum. NaN below four
    channels and for a layer that is zero.
    """
    low, high = np.full((2, len(profile.layers)), np.nan)
    for row, spectrum in enumerate(profile.spectrum):
        power, channels = _power(spectrum), len(spectrum)
        if channels >= 4 and power.sum() > 0:
            frequency = np.arange(1, len(power) + 1) / channels
            low[row] = power[frequency <= 1 / 6].sum() / power.sum()
            high[row] = power[frequency > 1 / 3].sum() / power.sum()
    return low, high


def _power(spectrum: FloatArray) -> FloatArray:
    """[C] → [C/2]: squared magnitudes at k = 1 .. C/2; the other half mirrors them."""
    return spectrum[1 : len(spectrum) // 2 + 1] ** 2


def _flatness_se(profile: Profile) -> FloatArray:
    """[L]: upper bound of the standard error of `spectral_flatness` over images, to first order.

    Attained where all frequencies rise and fall together in the worst way: Σ |∂flatness/∂S[k]| se[k].
    """
    bounds = []
    with np.errstate(divide="ignore", invalid="ignore"):
        for spectrum, se, flatness in zip(
            profile.spectrum, profile.spectrum_se, spectral_flatness(profile), strict=True
        ):
            power, half = _power(spectrum), slice(1, len(spectrum) // 2 + 1)
            slope = np.abs(1 - power / power.mean()) * 2 / spectrum[half] if len(power) else power
            bounds.append(flatness * (slope * se[half]).mean() if len(power) else np.nan)
    return np.array(bounds)


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
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = (profile.peak_images / profile.median_images).T.reshape(len(profile.layers), -1)
    ratios = np.array([row.mean() if len(row) and np.isfinite(row).all() else -np.inf for row in ratios])
    row = int(ratios.argmax())
    if not np.isfinite(ratios[row]):
        return MassiveActivations(np.nan, np.nan, np.nan)
    return MassiveActivations(
        float(ratios[row]), float(profile.blocks[row]), float(profile.peak_channel[row])
    )


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


def _trailing(flags: Sequence[bool]) -> int:
    """How many at the end are true."""
    return next((i for i, flag in enumerate(reversed(flags)) if not flag), len(flags))


def scalars(profile: Profile) -> dict[str, float]:
    """What `signature`, `spectrum_signature` and `massive_activations` say, by name; see `numbers`."""
    massive = {f"massive_{name}": value for name, value in numbers(massive_activations(profile)).items()}
    return numbers(signature(profile)) | numbers(spectrum_signature(profile)) | massive


def numbers(found: Any) -> dict[str, float]:
    """Fields of one of the dataclasses above as floats, for logging: yes is 1, no 0; unknown is left out."""
    values = {name: float(value) for name, value in asdict(found).items() if isinstance(value, (int, float))}
    return {name: value for name, value in values.items() if np.isfinite(value)}


def bootstrap_interval(values: FloatArray, level: float = 0.95) -> tuple[FloatArray, FloatArray]:
    """[N, L] → [L] and [L]: percentile bootstrap interval (Efron, 1979) of the mean over N images.

    R = 1000 resamples of whole rows, drawn with a fixed seed. NaN for fewer than two images; too
    narrow for fewer than some ten.
    """
    if len(values) < 2:
        return np.full(values.shape[1], np.nan), np.full(values.shape[1], np.nan)
    low, high = np.quantile(_resampled_means(values), [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def _resampled_means(values: FloatArray) -> FloatArray:
    """[N, L] → [R, L]: means of N rows drawn with replacement."""
    rng = np.random.default_rng(0)
    n, at_once = len(values), 20
    means = np.full((RESAMPLES, values.shape[1]), np.nan)
    for start in range(0, RESAMPLES if n else 0, at_once):
        times_drawn = [np.bincount(rng.integers(n, size=n), minlength=n) for _ in range(at_once)]
        means[start : start + at_once] = np.array(times_drawn, dtype=float) @ values / n
    return means
