import numpy as np
import pytest
import scipy.stats
from profiles import profile_of

from distill_dynamics.dynamics.signature import (
    band_energy,
    bootstrap_interval,
    evolution,
    gap,
    massive_activations,
    numbers,
    scalars,
    signature,
    spectral_flatness,
    spectrum_signature,
    student_t,
)
from distill_dynamics.dynamics.signature.spectrum import _flatness_se


def make_profile(entropy_images, magnitude=None, **changes):
    images, layers = entropy_images.shape
    magnitude = np.ones(layers) if magnitude is None else magnitude
    fields = {
        "model": "m",
        "epoch": 0,
        "layers": [f"blocks.{i}" for i in range(layers)],
        "entropy": entropy_images.sum(axis=0) / max(1, images),
        "magnitude": magnitude,
        "spectrum": [np.ones(2)] * layers,
        "entropy_images": entropy_images,
        "magnitude_images": np.tile(magnitude, (images, 1)),
        "peak_images": np.ones((images, layers)),
        "median_images": np.ones((images, layers)),
        "peak_channel": np.zeros(layers),
        "spectrum_se": [np.ones(2)] * layers,
        "value_range": np.tile([-1, 1], (layers, 1)),
        "range_mode": "global",
        "clipped": np.zeros(layers),
        "bins": 100,
    }
    return profile_of(**fields | changes)


def published(curve, epoch=None):
    layers = len(curve)
    none, nan = np.empty((0, layers)), np.full(layers, np.nan)
    return make_profile(
        none,
        epoch=epoch,
        entropy=curve,
        magnitude=nan,
        spectrum=[[]] * layers,
        spectrum_se=[[]] * layers,
        peak_channel=[-1] * layers,
    )


def with_spectra(spectra, error=0.0):
    flat = np.full((4, len(spectra)), 4.0)
    return make_profile(flat, spectrum=spectra, spectrum_se=[np.full(len(s), error) for s in spectra])


def noisy(curve, images=32, noise=0.05, seed=0):
    rng = np.random.default_rng(seed)
    common = rng.standard_normal((images, 1))  # an image's own level: it moves the curve, not its shape
    return make_profile(np.asarray(curve) + common + noise * rng.standard_normal((images, len(curve))))


U = 4 + 0.3 * np.linspace(-1, 1, 13) ** 2
FALLING = np.linspace(4.5, 4, 13)


def test_a_u_is_measured():
    found = signature(noisy(U, noise=1e-6))
    assert (found.nadir, found.nadir_se, found.u_shaped) == (7, 0, True)
    assert found.depth_left == pytest.approx(0.3, abs=1e-4)
    assert found.depth_right == pytest.approx(0.3, abs=1e-4)
    assert found.depth == min(found.depth_left, found.depth_right)


def test_depth_is_that_of_the_lower_side():
    curve = [4.5, 4.0, 3.8, 3.9, 4.1]
    found = signature(noisy(curve, noise=1e-6))
    assert found.nadir == 3
    assert found.depth_left == pytest.approx(0.7, abs=1e-4)
    assert found.depth == found.depth_right == pytest.approx(0.3, abs=1e-4)
    assert found.u_shaped


def test_a_noisy_u_is_still_one_and_says_how_sure_its_nadir_is():
    found = signature(noisy(U, noise=0.1))
    assert found.u_shaped
    assert abs(found.nadir - 7) <= 2
    assert 0.2 < found.nadir_se < 2.5


@pytest.mark.parametrize("curve", [FALLING, FALLING[::-1]])
@pytest.mark.parametrize("noise", [1e-6, 0.05])
def test_a_monotone_curve_is_no_u(curve, noise):
    found = signature(noisy(curve, noise=noise))
    assert not found.u_shaped
    assert found.nadir in (1, 13)
    assert found.depth == 0


def test_a_constant_curve_is_no_u():
    found = signature(make_profile(np.full((8, 5), 4.0)))
    assert (found.nadir, found.depth, found.depth_se, found.u_shaped) == (1, 0, 0, False)


def test_a_dip_at_the_end_within_the_noise_is_no_u():
    curve = FALLING.copy()
    curve[-2] = curve[-1] - 0.005
    assert not any(signature(noisy(curve, noise=0.1, seed=seed)).u_shaped for seed in range(10))


@pytest.mark.parametrize("layers", [3, 12, 24])
def test_noise_alone_is_rarely_taken_for_a_u(layers):
    found = [signature(noisy(np.full(layers, 4.0), seed=seed)).u_shaped for seed in range(40)]
    assert sum(found) <= 3  # 2.5 % expected at most; a bar of two standard errors lets a sixth of them pass


@pytest.mark.parametrize("layers", [4, 48])
@pytest.mark.parametrize("images", [2, 3, 8])
def test_neither_is_it_with_few_images(layers, images):
    found = [signature(noisy(np.full(layers, 4.0), images=images, seed=seed)).u_shaped for seed in range(40)]
    assert sum(found) <= 3  # with a normal quantile in the place of Student's, up to a third


@pytest.mark.parametrize("curve", [[5, 4, 5, 4.1, 5], [5, 4.1, 5, 4, 5], [5, 4.5, 4, 4.7, 4.3, 4.6]])
def test_two_dips_are_no_u(curve):
    assert not signature(noisy(curve, noise=1e-3)).u_shaped
    assert signature(noisy([5, 4.5, 4, 4.3, 4.2, 4.6], noise=1e-3)).u_shaped  # a bump is no second dip


@pytest.mark.parametrize(("depth", "u"), [(0.03, False), (0.049, False), (0.051, True)])
@pytest.mark.parametrize("deep", ["left", "right", "neither"])
def test_a_u_that_is_certain_and_shallow_is_none(depth, u, deep):
    """As of an untrained student, whose curve is flat and whose images agree."""
    curve = np.array([4 + depth, 4 + depth / 2, 4.0, 4 + depth / 2, 4 + depth])
    curve[{"left": 0, "right": -1}.get(deep, 0)] += 0 if deep == "neither" else 0.5
    found = signature(noisy(curve, noise=1e-5))
    assert found.depth == pytest.approx(depth, abs=1e-4)
    assert found.depth > 100 * found.depth_se
    assert found.u_shaped is u
    assert (found.compression is not None) is u


def test_the_magnitude_has_no_least_depth():
    """Its units are the activations': LayerNorm's are near 1, and a half of 0.01 is as deep as one of 10."""
    small = make_profile(np.tile(U, (4, 1)), 0.01 * U)
    assert signature(small).magnitude_agrees


@pytest.mark.parametrize("tail", [0.025, 0.025 / 22])
def test_students_quantile_is_scipys_or_more_careful(tail):
    for freedom in (1, 3, 10, 31, 999):
        theirs = scipy.stats.t.isf(tail, freedom)
        assert theirs <= student_t(tail, freedom)
        assert freedom < 10 or student_t(tail, freedom) < 1.01 * theirs


def test_depth_se_is_the_spread_over_images():
    # With the nadir beyond doubt, depth is a mean over images and its standard error the usual one.
    rng = np.random.default_rng(1)
    values = np.array([5.0, 4.0, 6.0]) + 0.1 * rng.standard_normal((40, 3))
    expected = scipy.stats.sem(values[:, 0] - values[:, 1])
    assert signature(make_profile(values)).depth_se == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("layers", [1, 2])
def test_too_few_layers_for_a_u(layers):
    found = signature(noisy(np.arange(layers)))
    assert (found.nadir, found.depth, found.u_shaped) == (1, 0, False)


def test_one_image_is_never_enough():
    found = signature(noisy(U, images=1, noise=0))
    assert found.u_shaped is None
    assert found.magnitude_agrees is None
    assert found.depth == pytest.approx(0.3)
    assert np.isnan(found.nadir_se)
    assert np.isnan(found.depth_se)


@pytest.mark.parametrize(
    ("layers", "magnitude_nadir", "agrees"),
    [(13, 7, True), (13, 8, True), (13, 5, False), (25, 15, True), (25, 16, False)],
)
def test_magnitude_agrees_within_a_tenth_of_the_layers(layers, magnitude_nadir, agrees):
    curve = 4 + np.linspace(-1, 1, layers) ** 2
    magnitude = np.ones(layers)
    magnitude[magnitude_nadir - 1] = 0.5
    found = signature(make_profile(np.tile(curve, (4, 1)), magnitude))
    assert found.nadir == (layers + 1) // 2
    assert (found.magnitude_nadir, found.magnitude_agrees) == (magnitude_nadir, agrees)


@pytest.mark.parametrize(
    ("curve", "magnitude"),
    [
        ([4.5, 4.0, 4.5], [1.0, 2.0, 3.0]),  # next to the nadir, but monotone
        ([4.0, 4.5, 5.0], [1.0, 2.0, 3.0]),  # both lowest at the first layer, and neither a U
        ([4.0, 4.5, 5.0], [2.0, 1.0, 2.0]),
    ],
)
def test_magnitude_agrees_with_no_u_and_by_no_other_shape(curve, magnitude):
    assert not signature(make_profile(np.tile(curve, (4, 1)), np.array(magnitude))).magnitude_agrees


def test_equal_profiles_have_equal_signatures():
    assert signature(noisy(U)) == signature(noisy(U))


@pytest.mark.parametrize(
    ("values", "unknown"),
    [
        (np.tile(U, (1, 1)), {"u_shaped", "magnitude_agrees", "three_phases", "nadir_se"}),  # one image
        (np.array([[4.0, 5.0], [4.1, 5.2]]), {"three_phases", "flatness_early", "low_middle"}),  # two layers
    ],
)
def test_what_is_unknown_is_logged_neither_as_yes_nor_as_no(values, unknown):
    profile = make_profile(
        values, spectrum=[np.ones(8)] * values.shape[1], spectrum_se=[np.zeros(8)] * values.shape[1]
    )
    assert not unknown & scalars(profile).keys()
    several = make_profile(np.tile(U, (4, 1)), spectrum=[np.ones(8)] * 13, spectrum_se=[np.zeros(8)] * 13)
    assert unknown <= scalars(several).keys()


def test_layers_are_told_by_their_block_numbers_where_some_were_left_out():
    curve, magnitude = np.array([5.0, 4.0, 6.0, 7.0]), np.array([3.0, 2.0, 1.0, 3.0])
    some = {"layers": ["a", "b", "c", "d"], "blocks": [1, 6, 12, 24]}
    peaks = np.ones((4, 4))
    peaks[:, 2] = 100
    found = make_profile(np.tile(curve, (4, 1)), magnitude, peak_images=peaks, **some)
    told = signature(found)
    assert (told.nadir, told.magnitude_nadir) == (6, 12)
    assert (told.compression, told.expansion) == ((1, 6), (6, 24))
    assert told.magnitude_agrees  # a row apart, as the Profile has no layers between
    assert massive_activations(found).block == 12
    # Of four images two are lowest at block 6 and two at 12: a coin thrown by each resample.
    doubtful = make_profile(np.array([[5.0, 3.9, 4.1, 6.0], [5.0, 4.1, 3.9, 6.0]] * 2), **some)
    assert 2.5 < signature(doubtful).nadir_se <= 3
    later = make_profile(np.tile([5.0, 6.0, 4.0, 7.0], (4, 1)), **some | {"epoch": 2})
    found.epoch = 1
    assert evolution([found, later]).nadir_change == 6


def test_phases_meet_at_the_nadir_and_are_none_without_a_u():
    found = signature(noisy(U, noise=1e-6))
    assert (found.compression, found.expansion) == ((1, 7), (7, 13))
    found = signature(noisy(FALLING, noise=1e-6))
    assert (found.compression, found.expansion) == (None, None)


def test_each_side_has_its_own_error():
    rng = np.random.default_rng(1)
    values = np.array([5.0, 4.0, 6.0]) + [0.3, 0.02, 0.1] * rng.standard_normal((40, 3))
    found = signature(make_profile(values))
    assert found.depth_left_se == pytest.approx(scipy.stats.sem(values[:, 0] - values[:, 1]), rel=0.1)
    assert found.depth_right_se == pytest.approx(scipy.stats.sem(values[:, 2] - values[:, 1]), rel=0.1)


def test_a_published_curve_has_a_nadir_and_nothing_that_needs_images():
    found = signature(published(U))
    assert (found.nadir, found.depth, found.u_shaped) == (7, pytest.approx(0.3), None)
    assert np.isnan([found.nadir_se, found.depth_se, found.depth_left_se, found.magnitude_nadir]).all()
    assert not found.magnitude_agrees
    assert "massive_ratio" not in scalars(published(U))
    said = {"nadir", "depth", "depth_left", "depth_right"}  # of these the curve alone is enough
    assert scalars(published(U)).keys() == said


def test_bootstrap_interval_is_scipys():
    values = np.random.default_rng(2).gamma(2, size=(60, 3))
    low, high = bootstrap_interval(values)
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, axis=0, n_resamples=5000, method="percentile", random_state=0
    ).confidence_interval
    width = theirs.high - theirs.low
    np.testing.assert_allclose(low, theirs.low, atol=0.08 * width.max())
    np.testing.assert_allclose(high, theirs.high, atol=0.08 * width.max())
    assert np.isnan(bootstrap_interval(values[:1])).all()


def test_flatness_is_geometric_over_arithmetic_mean_of_the_power():
    rng = np.random.default_rng(0)
    spectra = [rng.random(c) + 0.1 for c in (8, 9, 64)]
    expected = [
        scipy.stats.gmean(s[1 : len(s) // 2 + 1] ** 2) / np.mean(s[1 : len(s) // 2 + 1] ** 2) for s in spectra
    ]
    np.testing.assert_allclose(spectral_flatness(with_spectra(spectra)), expected)


def test_flatness_limits():
    peak = np.zeros(64)
    peak[[5, -5]] = 1
    huge_mean = np.ones(64)
    huge_mean[0] = 1e6
    found = spectral_flatness(with_spectra([np.ones(64), 7 * np.ones(64), peak, huge_mean, np.zeros(64)]))
    np.testing.assert_allclose(found[:4], [1, 1, 0, 1], atol=1e-12)
    assert np.isnan(found[4])


def test_band_energy_by_a_loop():
    spectra = [np.random.default_rng(c).random(c) for c in (12, 13, 192)]
    low, high = band_energy(with_spectra(spectra))
    for row, s in enumerate(spectra):
        power = {k / len(s): s[k] ** 2 for k in range(1, len(s) // 2 + 1)}
        total = sum(power.values())
        assert low[row] == pytest.approx(sum(p for f, p in power.items() if f <= 1 / 6) / total)
        assert high[row] == pytest.approx(sum(p for f, p in power.items() if f > 1 / 3) / total)
    low, high = band_energy(with_spectra([np.ones(192), np.ones(3), np.zeros(12)]))
    assert (low[0], high[0]) == (pytest.approx(1 / 3), pytest.approx(1 / 3))
    assert np.isnan([low[1:], high[1:]]).all()


def low_pass(channels, scale):
    k = np.minimum(np.arange(channels), channels - np.arange(channels))
    return scale * np.exp(-k / 8)


def high_pass(channels):
    return np.fft.fftshift(low_pass(channels, 1))


def test_three_phases_at_the_blocks_of_the_papers_figure_3():
    uniform, late = np.ones(64), 2 * np.ones(64)
    spectra = [uniform, uniform, uniform, low_pass(64, 1), low_pass(64, 1), late, late, late]
    found = spectrum_signature(with_spectra(spectra, error=0.001))
    assert found.three_phases
    assert (found.flatness_early, found.flatness_late) == (pytest.approx(1), pytest.approx(1))
    assert found.flatness_middle < 0.3
    assert found.low_middle > 0.8
    assert found.high_middle < 0.05
    assert found.energy_late == pytest.approx(4 * found.energy_early) == pytest.approx(4 * 32)


@pytest.mark.parametrize(
    ("spectra", "error"),
    [
        ([np.ones(64)] * 8, 0.001),  # flat throughout
        ([np.ones(64)] * 3 + [low_pass(64, 1)] * 5, 0.001),  # no return
        ([2 * np.ones(64)] * 3 + [low_pass(64, 1)] * 2 + [np.ones(64)] * 3, 0.001),  # weaker at the end
        ([np.ones(64)] * 3 + [low_pass(64, 1)] * 2 + [2 * np.ones(64)] * 3, 1.0),  # lost in the noise
        ([np.ones(64)] * 3 + [high_pass(64)] * 2 + [2 * np.ones(64)] * 3, 0.001),  # not low in between
        ([np.ones(64)] * 2, 0.001),
    ],
)
def test_what_is_not_three_phases(spectra, error):
    assert not spectrum_signature(with_spectra(spectra, error=error)).three_phases


def test_the_flatness_error_bounds_the_spread_over_images():
    # One common factor leaves the flatness alone; independent noise on each frequency moves it.
    rng = np.random.default_rng(0)
    images = rng.random(64) + 0.5 + 0.05 * rng.standard_normal((400, 64))
    images[:, 33:] = images[:, 31:0:-1]
    resampled = [images[rng.integers(400, size=400)].mean(axis=0) for _ in range(300)]
    spread = np.std([spectral_flatness(with_spectra([s]))[0] for s in resampled])
    profile = make_profile(
        np.full((4, 1), 4.0), spectrum=[images.mean(axis=0)], spectrum_se=[scipy.stats.sem(images)]
    )
    assert spread < _flatness_se(profile)[0] < 20 * spread


def test_massive_activations_name_the_block_and_the_channel():
    peaks, medians = np.ones((4, 3)), np.ones((4, 3))
    peaks[:, 1] = [100, 200, 300, 400]
    medians[:, 1] = [1, 2, 3, 4]
    medians[2, 2] = 0  # a layer with a ReLU has no ratio
    profile = make_profile(
        np.full((4, 3), 4.0), peak_images=peaks, median_images=medians, peak_channel=[1, 77, 3]
    )
    found = massive_activations(profile)
    assert (found.ratio, found.block, found.channel) == (pytest.approx(100), 2, 77)
    assert scalars(profile)["massive_block"] == 2


def test_the_gap_of_equal_depths_is_plain_numpy():
    rng = np.random.default_rng(0)
    a, b, m, n = rng.random((4, 6)) + 0.5
    found = gap(make_profile(np.tile(a, (3, 1)), m), make_profile(np.tile(b, (3, 1)), n))
    assert found.entropy_distance == pytest.approx(np.sqrt(((a - b) ** 2).mean()))
    assert found.entropy_shape_distance == pytest.approx((a - b).std())
    assert found.magnitude_distance == pytest.approx(np.sqrt((np.log2(m / n) ** 2).mean()))
    assert found.nadir_shift == pytest.approx((a.argmin() - b.argmin()) / 5)


def test_the_gap_is_taken_at_matched_relative_depth():
    deep = 4 + np.linspace(-1, 1, 25) ** 2
    shallow = deep[::2] + 1
    found = gap(make_profile(np.tile(shallow, (3, 1))), make_profile(np.tile(deep, (3, 1))))
    # What is left of the shape is the error of straight lines between the shallow model's layers.
    expected = np.interp(np.linspace(0, 1, 25), np.linspace(0, 1, 13), shallow) - deep
    assert found.entropy_distance == pytest.approx(np.sqrt((expected**2).mean()))
    assert found.entropy_shape_distance < 0.005
    assert found.nadir_shift == 0
    assert np.isnan(gap(published(U), published(U)).magnitude_distance)


def test_suppression_and_rebound_of_the_last_block():
    curves = {
        0: [3, 2, 1],  # before training: not counted
        30: [3, 2.5, 1.5],
        60: [2.9, 2.4, 1.2],
        90: [2.5, 2.3, 1.9],
        120: [2.2, 1.5, 1.8],
        150: [2.0, 1.4, 2.0],
    }
    found = evolution([published(np.array(c), e) for e, c in reversed(curves.items())])
    assert (found.last_lowest_until, found.last_rises_from, found.u_since) == (90, 120, None)
    assert found.last_rebound == pytest.approx(0.8)
    assert found.last_change == pytest.approx(0.5)
    assert found.first_change == pytest.approx(-1.0)
    assert found.nadir_change == -1


def test_an_evolution_that_shows_nothing():
    falling = evolution([published(np.array([1.0, 2, 4 - e]), e) for e in (1, 2, 3)])
    assert (falling.last_lowest_until, falling.last_rises_from, falling.last_rebound) == (None, None, 0)
    assert numbers(falling).keys() == {"last_rebound", "last_change", "first_change", "nadir_change"}
    for nothing in ([], [published(U, 0)], [published(U)]):
        assert numbers(evolution(nothing)) == {}


def test_one_block_is_no_last_block_and_level_is_no_rise():
    found = evolution([published(np.array([3.0]), e) for e in (1, 2, 3)])
    assert (found.last_lowest_until, found.last_rises_from) == (None, None)
    found = evolution([published(np.array([3.0, last]), e) for e, last in ((1, 1.0), (2, 1.5), (3, 1.5))])
    assert (found.last_lowest_until, found.last_rises_from) == (3, 1)


def test_u_since_the_epoch_after_which_every_probe_is_one():
    shapes = {30: U, 60: FALLING, 90: U, 120: U}
    profiles = [noisy(curve, noise=1e-6) for curve in shapes.values()]
    for profile, epoch in zip(profiles, shapes, strict=True):
        profile.epoch = epoch
    assert evolution(profiles).u_since == 90
    assert evolution(profiles[:2]).u_since is None
