"""SP: images that are alike for the teacher are alike for the student (Tung & Mori, ICCV 2019)."""

import torch.nn.functional as F
from torch import Tensor, nn

from distill_dynamics.losses.maps import at_least_float32, without_autocast
from distill_dynamics.losses.ranks import global_batch


@without_autocast
def similarity_preserving(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Mean squared difference of the images' similarities: x xᵀ [B, B], each row to length 1.

    x is a map [B, C, H, W], flat by image; grids and channels need not match. As in Eq. 4 (torchdistill's
    rows have the sum 1). Over the global batch: all ranks' maps are gathered, which must be equally many.
    """
    student, teacher = (
        global_batch(at_least_float32(x).flatten(1)) for x in (student_map, teacher_map.detach())
    )
    return F.mse_loss(F.normalize(student @ student.T, dim=1), F.normalize(teacher @ teacher.T, dim=1))


class SP(nn.Module):
    """`similarity_preserving`, which has nothing to learn; the authors weigh it 3,000."""

    def forward(self, student_map: Tensor, teacher_map: Tensor) -> Tensor:
        """Give the scalar loss of two maps [B, C, H, W]."""
        return similarity_preserving(student_map, teacher_map)
