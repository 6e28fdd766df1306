"""Gram: positions that are alike for the teacher are alike for the student (DINOv3, Siméoni et al. 2025)."""

import torch.nn.functional as F
from torch import Tensor, nn

from distill_dynamics.losses.maps import SeesPooled, at_least_float32, match_grids, without_autocast


def unit_tokens(x: Tensor) -> Tensor:
    """Map [B, C, H, W] → its tokens, each of length 1: [B, H · W, C], in float32 at least."""
    return F.normalize(at_least_float32(x).flatten(2).transpose(1, 2), dim=2)


def similarity_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of x xᵀ of both: tokens [..., N, C_s] and [..., N, C_t] → scalar."""
    return F.mse_loss(student @ student.mT, teacher @ teacher.mT)


@without_autocast
def gram(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Mean squared difference of the cosines between the tokens of each image: no channels have to match.

    Maps [B, C, H, W], pooled to the smaller grid. The slow form, s and t the tokens of one image:

        mean over i, j of (s_i·s_j / |s_i||s_j| - t_i·t_j / |t_i||t_j|)²

    As in dinov3's `gram_loss.py` by image, without its options to clip negative cosines.
    """
    student_map, teacher_map = match_grids(student_map, teacher_map.detach())
    return similarity_loss(unit_tokens(student_map), unit_tokens(teacher_map))


class Gram(SeesPooled, nn.Module):
    """`gram`, which has nothing to learn."""

    def forward(self, student_map: Tensor, teacher_map: Tensor) -> Tensor:
        """Give the scalar loss of two maps [B, C, H, W]."""
        return gram(student_map, teacher_map)
