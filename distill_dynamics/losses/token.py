"""TokenKD: each token points where the teacher's standardised token points (Theia, UNIC 2024)."""

from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill_dynamics.losses.maps import SeesPooled, at_least_float32, check_channels, match_grids
from distill_dynamics.losses.token_statistics import token_statistics


def token_kd(student: Tensor, teacher: Tensor) -> Tensor:
    """0.9 · (1 - cosine) + 0.1 · smooth L1 of tokens [..., D]; means. The shares are Theia's."""
    student, teacher = at_least_float32(student), at_least_float32(teacher.detach())
    apart = 1 - F.cosine_similarity(student, teacher, dim=-1)
    return 0.9 * apart.mean() + 0.1 * F.smooth_l1_loss(student, teacher)


class TokenKD(SeesPooled, nn.Module):
    """`token_kd` of a linear map of the student's tokens and the teacher's, standardised by channel.

    Mean and deviation of the teacher's channels are fitted before training, over 1,024 training images: for
    teachers without a head, whose channels have scales of their own. Maps are pooled to the smaller grid.

    `ValueError` for a map with other channels than those declared.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, student_channels: int, teacher_channels: int) -> None:
        super().__init__()
        self.channels = (student_channels, teacher_channels)
        self.projector = nn.Linear(student_channels, teacher_channels)
        self.register_buffer("mean", torch.zeros(teacher_channels))
        self.register_buffer("std", torch.ones(teacher_channels))

    def fit(self, batches: Iterable[Mapping[str, Tensor]]) -> None:
        """Measure mean and deviation of each of the teacher's channels."""
        mean, covariance = token_statistics(batches)
        self.mean.copy_(mean)
        variance = covariance.diagonal()
        self.std.copy_(variance.clamp(min=1e-4 * float(variance.mean())).sqrt())  # of dead channels, too

    def forward(self, student_map: Tensor, teacher_map: Tensor) -> Tensor:
        """Give the scalar loss of two maps [B, C, H, W]."""
        check_channels(student_map, teacher_map, self.channels)
        student_map, teacher_map = match_grids(student_map, at_least_float32(teacher_map))
        standardised = (teacher_map.movedim(1, -1) - self.mean) / self.std
        return token_kd(self.projector(student_map.movedim(1, -1)), standardised)
