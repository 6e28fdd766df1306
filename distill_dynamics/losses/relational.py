"""RKD: distances and angles between images (Park et al., Relational Knowledge Distillation, CVPR 2019)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill_dynamics.losses.maps import at_least_float32, without_autocast, without_own
from distill_dynamics.losses.ranks import global_batch


@without_autocast
def relational_kd(student: Tensor, teacher: Tensor, distance: float = 25.0, angle: float = 50.0) -> Tensor:
    """`distance` · smooth L1 of the distances + `angle` · smooth L1 of the cosines of angles; means.

    Features [B, D_s] and [B, D_t]. Distances between all pairs are divided by the mean of those above 0;
    angles are those at image j between the ways to i and k. Both over the global batch: all ranks' features
    are gathered, which must be equally many. Memory grows with B³. 25 and 50 are the authors'.
    """
    student, teacher = (global_batch(at_least_float32(x)) for x in (student, teacher.detach()))
    if len(student) < 2:
        raise ValueError("relations need two images or more")
    loss = student.new_zeros(())
    if distance:
        loss = loss + distance * F.smooth_l1_loss(_distances(student), _distances(teacher))
    if angle:
        loss = loss + angle * F.smooth_l1_loss(_cosines(student), _cosines(teacher))
    return loss


def _distances(x: Tensor) -> Tensor:
    """[B, D] → [B, B]; √ at 1e-12 and above, as its slope at 0 is infinite."""
    squares = (x[:, None] - x[None]).square().sum(2)
    apart = ~torch.eye(len(x), dtype=torch.bool, device=x.device)
    distances = squares.clamp(min=1e-12).sqrt() * apart
    return distances / without_own(distances, torch.arange(len(x), device=x.device)).mean()


def _cosines(x: Tensor) -> Tensor:
    """[B, D] → [B, B, B]."""
    ways = F.normalize(x[None] - x[:, None], dim=2)
    return ways @ ways.mT


class RKD(nn.Module):
    """`relational_kd` of pooled features."""

    def __init__(self, distance: float = 25.0, angle: float = 50.0) -> None:
        super().__init__()
        self.distance, self.angle = distance, angle

    def forward(self, student_pooled: Tensor, teacher_pooled: Tensor) -> Tensor:
        """Give the scalar loss of features [B, D_s] and [B, D_t]."""
        return relational_kd(student_pooled, teacher_pooled, self.distance, self.angle)
