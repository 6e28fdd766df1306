"""Under deterministic algorithms a student's map is pooled without adaptive pooling's gradient."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from distill_dynamics.losses import SpectralKD
from distill_dynamics.losses.maps import match_grids


class Operators(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.fixture(params=[False, True], ids=["as by default", "deterministic"])
def deterministic(request):
    torch.use_deterministic_algorithms(request.param)
    yield request.param
    torch.use_deterministic_algorithms(False)


def gradient(loss, x):
    return torch.autograd.grad(loss, x)[0]


@pytest.mark.parametrize("grid", [(4, 3), (5, 7), (8, 7), (1, 1)])
def test_a_grid_is_pooled_as_torch_pools_it(grid, deterministic):
    x = torch.randn(2, 3, 8, 7, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(2, 3, *grid, dtype=torch.float64)
    expected = F.adaptive_avg_pool2d(x, grid)
    with torch.autocast("cpu", torch.bfloat16):  # which has products in half precision
        pooled = match_grids(x, torch.zeros(2, 3, *grid, dtype=torch.float64))[0]
    torch.testing.assert_close(pooled, expected)
    torch.testing.assert_close(gradient((weights * pooled).sum(), x), gradient((weights * expected).sum(), x))


@pytest.mark.parametrize(("wide", "narrow"), [(12, 4), (12, 5), (12, 1)])
def test_channels_are_pooled_as_torch_pools_them(wide, narrow, deterministic):
    student = torch.randn(2, wide, 6, 6, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, narrow, 4, 4, dtype=torch.float64)
    with Operators() as used:
        loss = SpectralKD()(student, teacher)
        found = gradient(loss, student)
    pooled = F.adaptive_avg_pool3d(student[:, None], (narrow, 4, 4))[:, 0]
    spectra = torch.fft.rfft2(pooled - teacher, norm="ortho")
    expected = torch.view_as_real(spectra).square().mean()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(found, gradient(expected, student))
    refused = {name for name in used.names if "adaptive" in name and "backward" in name}
    assert bool(refused) != deterministic


def test_a_teachers_map_is_pooled_as_ever(deterministic):
    """It has no gradient, and a cache holds what it was pooled to: to the last bit."""
    student, teacher = torch.randn(2, 3, 5, 5), torch.randn(2, 8, 7, 7)
    torch.testing.assert_close(
        SpectralKD().cacheable(student, teacher),
        F.adaptive_avg_pool1d(
            F.adaptive_avg_pool2d(teacher, (5, 5)).flatten(2).transpose(1, 2), 3
        ).transpose(1, 2).unflatten(2, (5, 5)),
        rtol=0, atol=0,
    )  # fmt: skip
