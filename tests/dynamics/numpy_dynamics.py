"""Section 2 of the paper as plain numpy loops in float64: what the tests compare with."""

import numpy as np


def entropy(x, low, high, bins=100):
    x = x.astype(np.float64).clip(low, high)
    result = np.zeros((x.shape[0], *x.shape[2:]))
    for b, h, w in np.ndindex(*result.shape):
        count, _ = np.histogram(x[b, :, h, w], bins=bins, range=(low, high))
        p = count[count > 0] / x.shape[1]
        result[b, h, w] = -(p * np.log2(p)).sum()
    return result


def image_spectra(x):
    return np.abs(np.fft.fft(x.astype(np.float64), axis=1) / x.shape[1]).mean(axis=(2, 3))


def image_magnitudes(x):
    return np.abs(x.astype(np.float64)).mean(axis=(1, 2, 3))


def lower_medians(x):
    values = np.sort(x.reshape(len(x), -1), axis=1)
    return values[:, (values.shape[1] - 1) // 2]


def effective_rank(x):
    """Roy & Vetterli (2007) of the tokens of all images, [N, C, H, W]."""
    tokens = np.moveaxis(x.astype(np.float64), 1, -1).reshape(-1, x.shape[1])
    values = np.linalg.eigvalsh(np.atleast_2d(np.cov(tokens.T)))
    p = values[values > 0] / values[values > 0].sum()
    return np.exp(-(p * np.log(p)).sum())


def effective_rank_se(x, groups):
    """Delete-a-group jackknife: image i is in group i mod G; those without images are none."""
    group = np.arange(len(x)) % groups
    left_out = [effective_rank(x[group != g]) for g in np.unique(group)] if len(np.unique(group)) > 1 else []
    g = len(left_out)
    return np.sqrt((g - 1) / g * ((left_out - np.mean(left_out)) ** 2).sum()) if g else np.nan


def profile(maps, value_range="global", bins=100):
    """maps: a list of [N, C_l, H_l, W_l], all images at once."""
    if value_range == "global":
        ranges = [(min(x.min() for x in maps), max(x.max() for x in maps))] * len(maps)
    elif value_range == "layer":
        ranges = [(x.min(), x.max()) for x in maps]
    elif value_range == "scaled":  # divided by their magnitude, layers have one range
        units = [float(image_magnitudes(x).mean()) for x in maps]
        low = min(x.min() / unit for x, unit in zip(maps, units, strict=True))
        high = max(x.max() / unit for x, unit in zip(maps, units, strict=True))
        ranges = [(low * unit, high * unit) for unit in units]
    else:
        ranges = [value_range] * len(maps)
    ranges = [(float(low), float(high)) for low, high in ranges]
    n = len(maps[0])
    spectra = [image_spectra(x) for x in maps]
    return {
        "value_range": np.array(ranges),
        "entropy_images": np.stack(
            [entropy(x, *r, bins).mean(axis=(1, 2)) for x, r in zip(maps, ranges, strict=True)], axis=1
        ),
        "magnitude_images": np.stack([image_magnitudes(x) for x in maps], axis=1),
        "peak_images": np.stack([np.abs(x).max(axis=(1, 2, 3)) for x in maps], axis=1),
        "peak_channel": [np.unravel_index(np.abs(x).argmax(), x.shape)[1] for x in maps],
        "median_images": np.stack([lower_medians(np.abs(x)) for x in maps], axis=1),
        "spectrum": [s.mean(axis=0) for s in spectra],
        "spectrum_se": [s.std(axis=0, ddof=1) / np.sqrt(n) if n > 1 else s[0] * np.nan for s in spectra],
        "effective_rank": [effective_rank(x) for x in maps],
        "effective_rank_se": [effective_rank_se(x, 8 if x.shape[1] <= 128 else 4) for x in maps],
        "clipped": np.array(
            [((x < low) | (x > high)).mean() for x, (low, high) in zip(maps, ranges, strict=True)]
        ),
    }


def assert_profile(measured, expected):
    """Tolerances: 1e-4 bits, 1e-5 relative, the bins' range exactly but where it is from a mean."""
    exact = measured.range_mode != "scaled"
    np.testing.assert_allclose(measured.value_range, expected["value_range"], rtol=0 if exact else 1e-5)
    np.testing.assert_allclose(measured.entropy_images, expected["entropy_images"], atol=1e-4)
    np.testing.assert_allclose(measured.entropy, expected["entropy_images"].mean(axis=0), atol=1e-4)
    np.testing.assert_allclose(measured.magnitude_images, expected["magnitude_images"], rtol=1e-5)
    np.testing.assert_allclose(measured.magnitude, expected["magnitude_images"].mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(measured.curves["peak"], expected["peak_images"], rtol=1e-5)
    np.testing.assert_array_equal(measured.peak_channel, expected["peak_channel"])
    np.testing.assert_allclose(measured.curves["median"], expected["median_images"], rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(measured.curves["effective_rank"], expected["effective_rank"], rtol=1e-5)
    np.testing.assert_allclose(
        measured.curve_se("effective_rank"), expected["effective_rank_se"], rtol=1e-3, atol=1e-6
    )
    np.testing.assert_allclose(measured.clipped, expected["clipped"], atol=1e-7)
    for name, rtol in {"spectrum": 1e-5, "spectrum_se": 1e-3}.items():
        for ours, theirs in zip(getattr(measured, name), expected[name], strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=1e-7)
