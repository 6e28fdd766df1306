import math

import numpy as np
import numpy_dynamics
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from distill_dynamics.dynamics import channel_entropy
from distill_dynamics.dynamics.measures import entropy as entropy_module


def random_map(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def with_outlier():
    x = random_map(2, 96, 4, 3) * 0.01
    x[0, 5, 1, 1] = 300.0
    return x


MAPS = {
    "random": lambda: random_map(3, 384, 5, 4),
    "one channel": lambda: random_map(2, 1, 3, 3),
    "two channels": lambda: random_map(2, 2, 3, 3),
    "odd channels": lambda: random_map(2, 37, 3, 5),
    "fewer channels than bins": lambda: random_map(2, 12, 4, 4),
    "constant": lambda: torch.full((2, 64, 3, 3), -1.7),
    "one-hot": lambda: torch.eye(64)[:36].reshape(1, 36, 8, 8),
    "outlier": with_outlier,
    "rectified": lambda: random_map(2, 96, 4, 4).relu(),
    "heavy tails": lambda: random_map(2, 200, 4, 4) ** 5,
    "float16": lambda: random_map(2, 96, 4, 4).half(),
    "bfloat16": lambda: random_map(2, 96, 4, 4).bfloat16(),
    "float64": lambda: random_map(2, 96, 4, 4).double(),
    "channels last": lambda: random_map(2, 5, 4, 96).permute(0, 3, 1, 2),
    "every second": lambda: random_map(4, 192, 8, 8)[::2, ::2, ::2, 1::2],
    "expanded": lambda: random_map(1, 96, 1, 4).expand(3, 96, 4, 4),
}


@pytest.mark.parametrize("bins", [100, 64, 7, 1])
@pytest.mark.parametrize("name", MAPS)
def test_entropy_is_that_of_numpy_histogram(name, bins):
    x = MAPS[name]()
    low, high = x.min().item(), x.max().item()
    ours = channel_entropy(x, (low, high), bins)
    assert ours.shape == (x.shape[0], *x.shape[2:])
    expected = numpy_dynamics.entropy(x.double().numpy(), low, high, bins)
    np.testing.assert_allclose(ours.numpy(), expected, atol=1e-5)
    assert (ours >= 0).all()
    assert (ours <= math.log2(min(x.shape[1], bins)) + 1e-6).all()


def test_no_value_in_half_a_million_falls_into_another_bin_than_numpy_puts_it():
    x = random_map(4, 640, 14, 14)
    low, high = x.min().item(), x.max().item()
    expected = numpy_dynamics.entropy(x.double().numpy(), low, high)
    # One value in the next bin changes its position by about 1e-3 bits.
    np.testing.assert_allclose(channel_entropy(x, (low, high)).numpy(), expected, atol=1e-5)


def test_narrow_range_far_from_zero():
    x = 1000 + random_map(2, 96, 4, 4) * 0.5
    limits = (999.4, 1000.3)
    expected = numpy_dynamics.entropy(x.double().numpy(), *limits)
    np.testing.assert_allclose(channel_entropy(x, limits).numpy(), expected, atol=1e-5)


def entropy_of_counts(*counts):
    p = np.array(counts) / sum(counts)
    return -(p * np.log2(p)).sum()


@pytest.mark.parametrize(
    ("values", "counts"),
    [
        ([0, 1, 2, 3, 4], (1, 1, 1, 2)),  # left-closed bins, the last one closed
        ([0, 0.5, 1, 1.5, 4], (2, 2, 1)),
        ([-9, 0.5, 3.5, 7, 99], (2, 3)),  # outside: the bins at the ends
        ([-math.inf, 0.5, 1.5, 3.5, math.inf], (2, 1, 2)),
        ([2.2, 2.3, 2.4, 2.5, 2.6], (5,)),
    ],
)
def test_four_bins_from_0_to_4_by_hand(values, counts):
    x = torch.tensor(values, dtype=torch.float32).reshape(1, -1, 1, 1)
    assert channel_entropy(x, (0, 4), bins=4).item() == pytest.approx(entropy_of_counts(*counts), abs=1e-6)


def test_constant_channels_have_no_entropy_and_distinct_ones_all_of_it():
    assert channel_entropy(torch.full((2, 384, 3, 3), 0.3), (0.3, 0.3)).eq(0).all()
    assert channel_entropy(torch.full((2, 384, 3, 3), 0.3), (-1.0, 1.0)).eq(0).all()
    assert channel_entropy(random_map(2, 10, 3, 3), (1.0, 1.0)).eq(0).all()
    ramp = torch.arange(50.0).reshape(1, 50, 1, 1)
    assert channel_entropy(ramp, (0, 49), bins=50).item() == pytest.approx(math.log2(50), abs=1e-5)
    assert channel_entropy(ramp, (0, 50), bins=5).item() == pytest.approx(math.log2(5), abs=1e-5)


@pytest.mark.parametrize("chunk", [1, 30, 131, 10**9])
def test_chunks_of_any_size_give_the_same(monkeypatch, chunk):
    x = random_map(5, 12, 3, 7)
    expected = numpy_dynamics.entropy(x.double().numpy(), -2.0, 2.0, 10)
    monkeypatch.setattr(entropy_module, "CHUNK", chunk)
    np.testing.assert_allclose(channel_entropy(x, (-2, 2), 10).numpy(), expected, atol=1e-5)


class LargestStorage(TorchDispatchMode):
    nbytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.nbytes = max(self.nbytes, result.untyped_storage().nbytes())
        return result


def test_no_table_of_all_positions_and_bins():
    x = random_map(16, 32, 28, 28)
    with LargestStorage() as largest:
        channel_entropy(x, (-3, 3), bins=1000)
    assert largest.nbytes <= max(x.nbytes, 8 * entropy_module.CHUNK)  # all counts at once: 100 MB


def test_autocast_and_gradients_leave_it_alone():
    x = random_map(2, 96, 4, 4).requires_grad_()
    expected = channel_entropy(x.detach(), (-3, 3))
    with torch.autocast("cpu", torch.bfloat16):
        result = channel_entropy(x, (-3, 3))
    assert result.dtype == torch.float32
    assert not result.requires_grad
    assert torch.equal(result, expected)


@pytest.mark.parametrize(
    ("shape", "limits", "bins", "message"),
    [
        ((1, 4, 2, 2), (1, 0), 100, "lo <= hi"),
        ((1, 4, 2, 2), (0, math.inf), 100, "finite"),
        ((1, 4, 2, 2), (math.nan, 1), 100, "finite"),
        ((1, 4, 2, 2), (0, 1), 0, "bins"),
        ((1, 4, 2), (0, 1), 100, r"\[B, C, H, W\]"),
    ],
)
def test_wrong_arguments(shape, limits, bins, message):
    with pytest.raises(ValueError, match=message):
        channel_entropy(torch.zeros(shape), limits, bins)


def test_nan_is_in_no_bin():
    x = random_map(2, 20, 3, 3)
    x[1, 4, 2, 0] = math.nan
    with pytest.raises(ValueError, match="NaN"):
        channel_entropy(x, (-2, 2))


def test_no_images():
    assert channel_entropy(torch.zeros(0, 20, 3, 4), (-2, 2)).shape == (0, 3, 4)
