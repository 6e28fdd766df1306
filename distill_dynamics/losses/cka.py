"""CKA: two blocks arrange the same tokens alike (Kornblith et al., ICML 2019), as a loss."""

import torch
from torch import Tensor, nn

from distill_dynamics.losses.maps import SeesPooled, at_least_float32, match_grids, without_autocast
from distill_dynamics.losses.ranks import summed_over_ranks


@without_autocast
def cka_loss(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """1 - linear CKA of the tokens of two maps [B, C, H, W], pooled to the smaller grid; 0 to 1.

    |XᵀY|² / (|XᵀX| |YᵀY|), Frobenius norms, X [T, C_s] and Y [T, C_t] all tokens of the global batch, their
    mean taken off. No channels have to match; scale and rotation do not count.
    """
    student_map, teacher_map = match_grids(student_map, teacher_map.detach())
    x, y = (at_least_float32(m).movedim(1, -1).flatten(0, 2) for m in (student_map, teacher_map))
    ones = x.new_ones(1)
    sums = summed_over_ranks(torch.cat([x.sum(0), y.sum(0), len(x) * ones]))
    x = x - sums[: x.shape[1]] / sums[-1]
    y = y - sums[x.shape[1] : -1] / sums[-1]
    xx, xy, yy = (summed_over_ranks(product) for product in (x.T @ x, x.T @ y, y.T @ y))
    return 1 - (xy / xx.norm().sqrt() / yy.norm().sqrt()).square().sum()


class CKA(SeesPooled, nn.Module):
    """`cka_loss`, which has nothing to learn."""

    def forward(self, student_map: Tensor, teacher_map: Tensor) -> Tensor:
        """Give the scalar loss of two maps [B, C, H, W]."""
        return cka_loss(student_map, teacher_map)
