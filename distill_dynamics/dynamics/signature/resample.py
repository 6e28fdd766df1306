"""Uncertainty over images: resamples of them, and Student's t.

Letters: L layers, N images, R resamples.
"""

from statistics import NormalDist

import numpy as np

from distill_dynamics.dynamics.profile import FloatArray

RESAMPLES = 1000


def bootstrap_interval(values: FloatArray, level: float = 0.95) -> tuple[FloatArray, FloatArray]:
    """[N, L] → [L] and [L]: percentile bootstrap interval (Efron, 1979) of the mean over N images.

    R = 1000 resamples of whole rows, drawn with a fixed seed. NaN for fewer than two images; too
    narrow for fewer than some ten.
    """
    if len(values) < 2:
        return np.full(values.shape[1], np.nan), np.full(values.shape[1], np.nan)
    low, high = np.quantile(resampled_means(values), [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def resampled_means(values: FloatArray) -> FloatArray:
    """[N, L] → [R, L]: means of N rows drawn with replacement, by a fixed seed; NaN for N = 0."""
    rng = np.random.default_rng(0)
    n, at_once = len(values), 20
    means = np.full((RESAMPLES, values.shape[1]), np.nan)
    for start in range(0, RESAMPLES if n else 0, at_once):
        times_drawn = [np.bincount(rng.integers(n, size=n), minlength=n) for _ in range(at_once)]
        means[start : start + at_once] = np.array(times_drawn, dtype=float) @ values / n
    return means


def student_t(tail: float, freedom: int) -> float:
    """Quantile of Student's distribution at 1 - `tail`, after Wallace (1959).

    Within 1 % from 10 degrees of freedom on; too large, so on the careful side, for fewer.
    """
    z = NormalDist().inv_cdf(1 - tail) * (8 * freedom + 3) / (8 * freedom + 1)
    return float(np.sqrt(freedom * np.expm1(z * z / freedom)))
