"""What the losses share: enough precision, rows without an entry, two maps of the same images, one grid."""

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec

import torch
import torch.nn.functional as F
from torch import Tensor

P = ParamSpec("P")


def at_least_float32(x: Tensor) -> Tensor:
    """`x` itself if it is float32 or float64, in float32 if it is of a half type."""
    return x if x.itemsize >= 4 else x.float()


def without_autocast(
    function: Callable[Concatenate[Tensor, P], Tensor],
) -> Callable[Concatenate[Tensor, P], Tensor]:
    """The function, with products in the precision of its tensors whatever autocast says."""

    @wraps(function)
    def inner(first: Tensor, *args: P.args, **kwargs: P.kwargs) -> Tensor:
        with torch.autocast(first.device.type, enabled=False):
            return function(first, *args, **kwargs)

    return inner


def without_own(x: Tensor, own: Tensor) -> Tensor:
    """[B, K] without one entry of each row, own [B]: [B, K - 1], in order."""
    # Not by a mask: to know how many entries that leaves, the host would wait for a GPU.
    place = torch.arange(x.shape[1] - 1, device=x.device)
    return x.gather(1, place + (place >= own[:, None]))


def match_grids(student_map: Tensor, teacher_map: Tensor) -> tuple[Tensor, Tensor]:
    """Bring two maps [B, C_s, H_s, W_s] and [B, C_t, H_t, W_t] to one grid, (min H, min W).

    A map on a larger grid is adaptively average-pooled; one already on that grid is returned as it is.
    `ValueError` unless both are maps of equally many images.
    """
    if student_map.ndim != 4 or teacher_map.ndim != 4 or len(student_map) != len(teacher_map):
        raise ValueError(
            "expected two maps [B, C, H, W] of the same images, "
            f"got {list(student_map.shape)} (student) and {list(teacher_map.shape)} (teacher)"
        )
    grid = (
        min(student_map.shape[2], teacher_map.shape[2]),
        min(student_map.shape[3], teacher_map.shape[3]),
    )
    return _pool_to(student_map, grid), _pool_to(teacher_map, grid)


class SeesPooled:
    """A loss that sees of the teacher's map what is pooled to the smaller grid."""

    def cacheable(self, student_map: Tensor, teacher_map: Tensor) -> Tensor:
        """That part, [B, C_t, min H, min W]; only the student map's shape counts."""
        return match_grids(student_map, teacher_map)[1]


def check_channels(student_map: Tensor, teacher_map: Tensor, declared: tuple[int | None, int | None]) -> None:
    """`ValueError` where maps or features [B, C, ...] have not the channels their loss was built for.

    None was not declared.
    """
    maps = {"student": student_map, "teacher": teacher_map}
    for (name, x), channels in zip(maps.items(), declared, strict=True):
        if channels is not None and x.shape[1] != channels:
            what = "map" if x.ndim == 4 else "features"
            raise ValueError(
                f"the {name}'s {what} {list(x.shape)} should have {channels} channels, "
                "as its loss was built for"
            )


def _pool_to(x: Tensor, grid: tuple[int, int]) -> Tensor:
    if x.shape[2:] == grid:
        return x
    if refuses_pooling(x):
        return pool_last(pool_last(x, grid[1]).transpose(2, 3), grid[0]).transpose(2, 3)
    return F.adaptive_avg_pool2d(x, grid)


def refuses_pooling(x: Tensor) -> bool:
    """Whether torch would refuse adaptive pooling's gradient: on a GPU it has no deterministic form."""
    return x.requires_grad and torch.are_deterministic_algorithms_enabled()


@without_autocast
def pool_last(x: Tensor, size: int) -> Tensor:
    """Adaptive averages along the last dimension, [..., N] to [..., size], as a product."""
    with torch.no_grad():
        each = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
        windows = F.adaptive_avg_pool1d(each[None], size)[0]
    return x @ windows
