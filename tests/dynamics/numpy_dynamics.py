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
    np.testing.assert_allclose(measured.peak_images, expected["peak_images"], rtol=1e-5)
    np.testing.assert_array_equal(measured.peak_channel, expected["peak_channel"])
    np.testing.assert_allclose(measured.median_images, expected["median_images"], rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(measured.clipped, expected["clipped"], atol=1e-7)
    for name, rtol in {"spectrum": 1e-5, "spectrum_se": 1e-3}.items():
        for ours, theirs in zip(getattr(measured, name), expected[name], strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=1e-7)
