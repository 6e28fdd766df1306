import numpy as np
import numpy_dynamics
import pytest
import torch

from distill_dynamics.dynamics import profile_model
from distill_dynamics.dynamics.measures.effective_rank import effective_rank
from distill_dynamics.dynamics.profiler.each import each


@pytest.mark.parametrize("channels", [1, 7, 64])
def test_all_directions_alike_are_as_many_as_there_are(channels):
    assert effective_rank(torch.full((channels,), 0.3)).item() == pytest.approx(channels)


@pytest.mark.parametrize("used", [1, 3])
def test_directions_that_do_not_vary_do_not_count(used):
    values = torch.zeros(10)
    values[:used] = 5.0
    assert effective_rank(values).item() == pytest.approx(used)
    values[-1] = -1e-9  # round-off
    assert effective_rank(values).item() == pytest.approx(used)


def test_two_directions_by_hand():
    """p = 3/4, 1/4: exp(0.5623)."""
    assert effective_rank(torch.tensor([3.0, 1.0])).item() == pytest.approx(1.7548, abs=1e-4)


def test_nothing_that_varies_has_no_rank():
    assert effective_rank(torch.zeros(4)).isnan()


class Maps:
    """A model whose layers are functions of one image alone."""

    name, layers = "maps", ["a"]

    def __init__(self, channels, of=lambda x: x):
        self.channels, self.of = [channels], of

    def parameters(self):
        return iter(())

    def __call__(self, images, layers=(), logits=True):
        return type("Features", (), {"maps": [self.of(images)]})


def tokens(images, channels, spread=1.0, seed=0):
    """Channels whose variances fall by a power of ten and whose mean is far from 0, mixed by a rotation."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((images, channels, 3, 5)) * np.logspace(0, -spread, channels)[:, None, None]
    x *= rng.uniform(0.5, 2, (images, 1, 1, 1))
    rotation, _ = np.linalg.qr(rng.standard_normal((channels, channels)))
    return torch.from_numpy(np.einsum("dc,nchw->ndhw", rotation, x) + 20).float()


def measured(images, batch_size=32, of=lambda x: x):
    profile = profile_model(Maps(images.shape[1], of), images, value_range=(-100, 100), batch_size=batch_size)
    return profile.curves["effective_rank"].item(), profile.curve_se("effective_rank").item()


# 129 channels have four groups.
@pytest.mark.parametrize(("images", "channels"), [(16, 6), (19, 12), (5, 40), (24, 129), (2, 3)])
def test_in_one_pass_it_is_numpys_on_the_whole_set(images, channels):
    x = tokens(images, channels)
    value, error = measured(x)
    assert value == pytest.approx(numpy_dynamics.effective_rank(x.numpy()), rel=1e-5)
    slow = numpy_dynamics.effective_rank_se(x.numpy(), 8 if channels <= 128 else 4)
    assert error == pytest.approx(slow, rel=1e-3)


@pytest.mark.parametrize("batch_size", [1, 3, 8, 40])
def test_it_does_not_depend_on_the_batch_size(batch_size):
    x = tokens(21, 10)
    np.testing.assert_allclose(measured(x, batch_size), measured(x, 21), rtol=1e-5)


def test_it_changes_neither_with_scale_nor_rotation_nor_offset():
    x = tokens(12, 8)
    rotation = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)))[0]

    def turned(maps):
        return 1000 * torch.einsum("dc,nchw->ndhw", rotation, maps) - 5

    np.testing.assert_allclose(measured(x, of=turned), measured(x), rtol=1e-4)


def test_tokens_on_a_line_have_rank_one_and_noise_in_all_directions_all():
    line = torch.linspace(-1, 1, 8 * 16).view(8, 1, 4, 4) * torch.arange(1.0, 6).view(1, 5, 1, 1)
    assert measured(line)[0] == pytest.approx(1, abs=1e-3)
    noise = torch.randn(64, 5, 16, 16, generator=torch.Generator().manual_seed(0))
    assert measured(noise)[0] == pytest.approx(5, rel=1e-3)


def test_one_image_has_a_value_and_no_error_and_a_dead_layer_neither():
    value, error = measured(tokens(1, 4))
    assert value == pytest.approx(numpy_dynamics.effective_rank(tokens(1, 4).numpy()), rel=1e-5)
    assert np.isnan(error)
    assert np.isnan(measured(torch.full((4, 4, 2, 2), 3.0))).all()


def test_what_is_too_large_for_the_products_is_unknown_and_no_error():
    assert np.isnan(measured(1e25 * tokens(4, 4), of=lambda x: x)).all()


def test_a_wide_stage_has_a_value_alone():
    value, error = measured(tokens(4, 800, spread=2))
    assert 1 < value < 800
    assert np.isnan(error)


def test_the_maps_are_as_they_were():
    x = tokens(8, 6)
    before = x.clone()
    measured(x)
    assert torch.equal(x, before)


def test_the_jackknife_is_near_the_spread_over_other_images():
    values, errors = zip(*(measured(tokens(32, 12, seed=seed)) for seed in range(40)), strict=True)
    spread = np.std(values, ddof=1)
    assert 0.7 < np.mean(errors) / spread < 1.4


def test_the_threads_of_torch_are_put_back_after_an_error() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with pytest.raises(ZeroDivisionError):
            each(lambda x: 1 // x, [1, 0])
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
