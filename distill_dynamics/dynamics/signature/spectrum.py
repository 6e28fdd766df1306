"""The three phases of the channel spectrum over depth (paper, Section 4.3).

Letters: L layers, C channels, P power.
"""

from dataclasses import dataclass

import numpy as np

from distill_dynamics.dynamics.profile import FloatArray, Profile
from distill_dynamics.dynamics.signature.resample import student_t


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
