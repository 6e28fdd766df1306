"""AttentionTransfer: where a block is active, not by which channel (Zagoruyko & Komodakis, ICLR 2017)."""

import torch.nn.functional as F
from torch import Tensor, nn

from distill_dynamics.losses.maps import SeesPooled, at_least_float32, match_grids


def attention_transfer(student_map: Tensor, teacher_map: Tensor, power: float = 2.0) -> Tensor:
    """Mean squared difference of two activity maps: Σ_c |x|^p over channels, to length 1 over positions.

    Maps [B, C, H, W], pooled to the smaller grid; the mean is over B and positions, as in the authors' code
    (`utils.py`). Their Eq. 2 has the distance itself, not squared, summed. There it
    weighs 1,000 a block, for grids of 8 to 32: it falls with the number of positions.
    """
    student, teacher = (
        F.normalize(at_least_float32(x).abs().pow(power).mean(1).flatten(1))
        for x in match_grids(student_map, teacher_map.detach())
    )
    return F.mse_loss(student, teacher)


class AttentionTransfer(SeesPooled, nn.Module):
    """`attention_transfer`, which has nothing to learn."""

    def __init__(self, power: float = 2.0) -> None:
        super().__init__()
        self.power = power

    def forward(self, student_map: Tensor, teacher_map: Tensor) -> Tensor:
        """Give the scalar loss of two maps [B, C, H, W]."""
        return attention_transfer(student_map, teacher_map, self.power)
