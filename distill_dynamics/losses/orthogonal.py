"""VkD: an orthogonal projection of the student is the normalised teacher (Miles et al., CVPR 2024)."""

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal

from distill_dynamics.losses.maps import SeesPooled, at_least_float32, match_grids


def orthogonal_kd(projected: Tensor, teacher: Tensor) -> Tensor:
    """Smooth L1 of features [..., D] and the teacher's [..., D] at mean 0 and variance 1 over D; a mean."""
    teacher = at_least_float32(teacher.detach())
    return F.smooth_l1_loss(at_least_float32(projected), F.layer_norm(teacher, teacher.shape[-1:]))


def orthogonal_map(student_channels: int, teacher_channels: int) -> nn.Module:
    """A linear map P without bias, PᵀP = 1, or PPᵀ = 1 where the teacher is narrower.

    By Cayley's transform: torch's default for maps that are not square, Householder's, keeps signs among its
    parameters, which weight decay turns to 0.
    """
    linear = nn.Linear(student_channels, teacher_channels, bias=False)
    return orthogonal(linear, orthogonal_map="cayley")


class VkD(nn.Module):
    """`orthogonal_kd` of pooled features [B, D_s] and [B, D_t].

    The projection keeps lengths and angles (`orthogonal_map`), so that it cannot take over what the student
    is to learn. The authors weigh it 1 beside DeiT's losses, on the last features; on early blocks it can
    hurt (their issue 7).
    """

    def __init__(self, student_channels: int, teacher_channels: int) -> None:
        super().__init__()
        self.projector = orthogonal_map(student_channels, teacher_channels)

    def forward(self, student_pooled: Tensor, teacher_pooled: Tensor) -> Tensor:
        """Give the scalar loss of features [B, D_s] and [B, D_t]."""
        return orthogonal_kd(self.projector(student_pooled), teacher_pooled)


class VkDMap(SeesPooled, nn.Module):
    """The same of each token of two maps."""

    def __init__(self, student_channels: int, teacher_channels: int) -> None:
        super().__init__()
        self.projector = orthogonal_map(student_channels, teacher_channels)

    def forward(self, student_map: Tensor, teacher_map: Tensor) -> Tensor:
        """Give the scalar loss of two maps [B, C, H, W], pooled to the smaller grid."""
        student_map, teacher_map = match_grids(student_map, teacher_map)
        return orthogonal_kd(self.projector(student_map.movedim(1, -1)), teacher_map.movedim(1, -1))
