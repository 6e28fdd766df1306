"""Manifold: similarities within images, across images and among random tokens (Hao et al., NeurIPS 2022)."""

import torch
from torch import Tensor, nn

from distill_dynamics.losses.gram import similarity_loss, unit_tokens
from distill_dynamics.losses.maps import SeesPooled, match_grids, without_autocast
from distill_dynamics.losses.ranks import global_batch


@without_autocast
def manifold(student_map: Tensor, teacher_map: Tensor, samples: int = 192) -> Tensor:
    """4 · within an image + 0.1 · across the batch at a position + 0.2 · among random tokens of the batch.

    Each is the mean squared difference of the cosines of student's and teacher's tokens; maps [B, C, H, W],
    pooled to the smaller grid. The weights are those of the authors' code, which standardises tokens before
    (here they have length 1, as its cosines have). Reported without a gain by others (its issue 2).

    The tokens of all ranks are gathered, which must be equally many; each rank draws tokens of its own.
    """
    student, teacher = map(unit_tokens, match_grids(student_map, teacher_map.detach()))
    within = similarity_loss(student, teacher)
    student, teacher = global_batch(student), global_batch(teacher)
    across = similarity_loss(student.transpose(0, 1), teacher.transpose(0, 1))
    count = student.shape[0] * student.shape[1]
    drawn = torch.randperm(count, device=student.device)[:samples]
    random = similarity_loss(student.flatten(0, 1)[drawn], teacher.flatten(0, 1)[drawn])
    return 4 * within + 0.1 * across + 0.2 * random


class Manifold(SeesPooled, nn.Module):
    """`manifold`, which has nothing to learn."""

    def __init__(self, samples: int = 192) -> None:
        super().__init__()
        self.samples = samples

    def forward(self, student_map: Tensor, teacher_map: Tensor) -> Tensor:
        """Give the scalar loss of two maps [B, C, H, W]."""
        return manifold(student_map, teacher_map, self.samples)
