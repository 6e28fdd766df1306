"""The floors of a block at a student's width, and the rank at 95 % energy, against numpy."""

import hashlib

import numpy as np
import pytest
import torch
from test_effective_rank import Maps, tokens

from distill_dynamics.dynamics import Profile, profile_model, profile_ranges
from distill_dynamics.dynamics.measures.capacity_floor import capacity_floor
from distill_dynamics.dynamics.measures.correlation_floor import correlation_floor
from distill_dynamics.dynamics.measures.rank_95 import rank_95
from distill_dynamics.errors import UserError
from distill_dynamics.losses.unexplained_variance import unexplained_variance

NAMES = ["capacity_floor", "correlation_floor"]


def floors(images, width, batch_size=32, of=lambda x: x):
    model = Maps(of(images[:1]).shape[1], of)
    profile = profile_model(
        model, images, value_range=(-100, 100), batch_size=batch_size, student_width=width
    )
    return [profile.curve(name).item() for name in NAMES]


def numpys(x, width):
    """By the residual of a least-squares projection, token by token, in float64."""
    swapped = [hashlib.sha256(str(pair).encode()).digest()[0] % 2 for pair in range(len(x) // 2 + 1)]
    second = np.array([(i % 2) ^ swapped[i // 2] for i in range(len(x))], dtype=bool)
    halves = [np.moveaxis(x[of].double().numpy(), 1, -1).reshape(-1, x.shape[1]) for of in (~second, second)]
    results = []
    for scaled in (False, True):
        fitted, measured = ((t - t.mean(0)) / (t.std(0) if scaled else 1) for t in halves)
        components = np.linalg.svd(fitted, full_matrices=False)[2][:width]
        left = measured - measured @ components.T @ components
        results.append((left**2).sum() / (measured**2).sum())
    return results


@pytest.mark.parametrize(
    ("images", "channels", "width"), [(32, 12, 4), (19, 6, 5), (24, 129, 60), (2, 9, 1), (6, 800, 20)]
)
def test_they_are_numpys_of_the_one_half_on_the_other(images, channels, width):
    x = tokens(images, channels)
    np.testing.assert_allclose(floors(x, width), numpys(x, width), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_they_do_not_depend_on_the_batch_size(batch_size):
    x = tokens(21, 10)
    np.testing.assert_allclose(floors(x, 4, batch_size), floors(x, 4, 21), rtol=1e-5)


def test_classes_that_take_turns_are_in_both_halves():
    """Each class has a direction of its own: to be held, it must be among the images of the first half."""
    for count in (2, 3, 10, 16):
        classes = torch.arange(12 * count) % count
        x = torch.nn.functional.one_hot(classes, 20).float()[:, :, None, None] * torch.ones(1, 1, 3, 3)
        assert floors(x, count - 1)[0] == pytest.approx(0, abs=1e-6), count


def test_a_student_as_wide_as_the_block_holds_all_of_it_and_the_dead_block_says_nothing():
    x = tokens(8, 6)
    assert floors(x, 6) == floors(x, 100) == [0, 0]
    assert np.isnan(floors(torch.full((4, 4, 2, 2), 3.0), 2)).all()


def test_the_capacity_floor_follows_a_large_channel_and_the_correlation_floor_does_not():
    x = torch.randn(64, 5, 8, 8, generator=torch.Generator().manual_seed(0))
    x[:, 2] *= 100
    capacity, correlation = floors(x, 1)
    assert capacity < 1e-3
    assert correlation == pytest.approx(4 / 5, abs=0.03)


def test_they_change_neither_with_order_nor_offset_nor_scale_the_capacity_nor_with_rotation():
    x, order = tokens(12, 8), torch.randperm(8, generator=torch.Generator().manual_seed(1))
    rotation = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)))[0]
    np.testing.assert_allclose(floors(x, 3, of=lambda m: 1000 * m[:, order] - 5), floors(x, 3), rtol=1e-4)
    turned = floors(x, 3, of=lambda m: torch.einsum("dc,nchw->ndhw", rotation, m))
    assert turned[0] == pytest.approx(floors(x, 3)[0], rel=1e-4)


@pytest.mark.parametrize(("images", "width"), [(1, 2), (2, 15), (3, 15), (4, 30)])
def test_too_few_tokens_for_so_many_components_say_nothing(images, width):
    """15 tokens an image: the smaller half has to have more than there are components."""
    assert np.isnan(floors(tokens(images, 40), width)).all()


def test_directions_that_do_not_vary_are_no_components():
    """Round-off must not choose among them: 3 of 6 channels vary in the half that is fitted to."""
    fitted = torch.diag(torch.tensor([5.0, 3, 2, 0, 0, 0]).double())
    measured = torch.diag(torch.tensor([5.0, 3, 2, 1, 1, 1]).double())
    assert capacity_floor(fitted, measured, 5).item() == pytest.approx(3 / 13)
    assert correlation_floor(fitted, measured, 5).item() == pytest.approx(3 / 6)


def test_of_one_set_of_tokens_it_is_the_residual_of_the_best_map():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 7)) @ rng.standard_normal((7, 7)) + 3
    centred = x - x.mean(0)
    left, values, right = np.linalg.svd(centred, full_matrices=False)
    best = left[:, :3] * values[:3] @ right[:3]
    covariance = torch.from_numpy(centred.T @ centred / 200)
    expected = ((centred - best) ** 2).sum() / 200
    assert unexplained_variance(covariance, 3).item() == pytest.approx(expected)
    fitted = np.linalg.lstsq(rng.standard_normal((200, 3)), centred, rcond=None)[1].sum() / 200
    assert fitted > expected  # other channels do worse


def test_without_a_width_they_are_not_there_and_nothing_else_changes():
    x = tokens(16, 10)
    plain, with_floors = (
        profile_model(Maps(10), x, value_range=(-100, 100), student_width=width) for width in (None, 4)
    )
    assert plain.student_width is None
    assert plain.curves.keys().isdisjoint(NAMES)
    assert with_floors.student_width == 4
    assert with_floors.curves.keys() - plain.curves.keys() == {*NAMES}
    for name, values in plain.curves.items():
        np.testing.assert_allclose(with_floors.curves[name], values, rtol=1e-6, err_msg=name)
    for name, values in plain.errors.items():
        np.testing.assert_allclose(with_floors.errors[name], values, rtol=1e-4, err_msg=name)


def test_the_width_is_in_the_file(tmp_path):
    profile = profile_model(Maps(10), tokens(8, 10), value_range=(-100, 100), student_width=4)
    profile.save(tmp_path / "p.npz")
    loaded = Profile.load(tmp_path / "p.npz")
    assert loaded.student_width == 4
    assert loaded.curve("capacity_floor").tolist() == profile.curve("capacity_floor").tolist()


@pytest.mark.parametrize("width", [0, -3])
def test_a_width_that_is_none_is_refused(width):
    with pytest.raises(UserError, match=rf"^student_width is .* 1 or more, not {width}$"):
        floors(tokens(4, 4), width)


@pytest.mark.parametrize(("values", "rank"), [([1, 1, 1, 1], 4), ([96, 4], 1), ([95, 5], 1), ([90, 6, 4], 2)])
def test_rank_95_by_hand(values, rank):
    shuffled = torch.tensor([*values[1:], values[0]]).double()
    assert rank_95(shuffled).item() == rank
    assert rank_95(torch.stack([shuffled, 7 * shuffled])).tolist() == [rank, rank]


def test_rank_95_is_numpys_and_has_no_error():
    x = tokens(20, 16)
    profile = profile_model(Maps(16), x, value_range=(-100, 100))
    flat = np.moveaxis(x.double().numpy(), 1, -1).reshape(-1, 16)
    values = np.linalg.eigvalsh(np.cov(flat.T))[::-1]
    assert profile.curve("rank_95").item() == np.searchsorted(values.cumsum() / values.sum(), 0.95) + 1
    assert np.isnan(profile.curve_se("rank_95")).all()
    assert rank_95(torch.zeros(4)).isnan()


def test_each_range_has_a_profile_for_each_width_as_often_as_it_is_named():
    x, ranges = tokens(8, 6), [(-100, 100), (-50, 50)]
    model = Maps(6, lambda m: m)
    profiles = profile_ranges(model, x, value_ranges=ranges, student_widths=[2, 3, 2])
    assert [p.student_width for p in profiles] == [2, 3, 2] * 2
    assert [p.value_range[0, 1] for p in profiles] == [100] * 3 + [50] * 3
