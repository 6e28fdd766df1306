import numpy as np
import pytest
import scipy.stats

from distill_dynamics.dynamics import Profile
from distill_dynamics.dynamics.signature import signature


def make_profile(entropy_images, magnitude=None):
    images, layers = entropy_images.shape
    magnitude = np.ones(layers) if magnitude is None else magnitude
    return Profile(
        model="m",
        epoch=0,
        layers=[f"blocks.{i}" for i in range(layers)],
        entropy=entropy_images.mean(axis=0),
        magnitude=magnitude,
        spectrum=[np.ones(2)] * layers,
        entropy_images=entropy_images,
        magnitude_images=np.tile(magnitude, (images, 1)),
        spectrum_se=[np.ones(2)] * layers,
        value_range=np.tile([-1, 1], (layers, 1)),
        range_mode="global",
        clipped=np.zeros(layers),
        bins=100,
    )


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
    assert not found.u_shaped
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


def test_equal_profiles_have_equal_signatures():
    assert signature(noisy(U)) == signature(noisy(U))
