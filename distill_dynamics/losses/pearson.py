"""PKD: maps by their correlation, whatever their scale (Cao et al., NeurIPS 2022)."""

import torch.nn.functional as F
from torch import Tensor, nn

from distill_dynamics.losses.maps import SeesPooled, at_least_float32, check_channels, match_grids
from distill_dynamics.losses.projector import standardise


def pearson_kd(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Half the mean squared difference of standardised maps: 1 - Pearson's correlation, mean over channels.

    Maps [B, C, H, W] of equally many channels, pooled to the smaller grid; each channel has mean 0 and
    variance 1 over B, H, W of the global batch (`standardise`, whose 1e-5 beside the variance is the only
    difference to 1 - ρ). The factor is that of mmrazor's `pkd_loss.py`, which weighs it 6 (detection).
    """
    student_map, teacher_map = match_grids(student_map, teacher_map.detach())
    student, teacher = standardise(at_least_float32(student_map), at_least_float32(teacher_map))
    return F.mse_loss(student, teacher) / 2


class PKD(SeesPooled, nn.Module):
    """`pearson_kd`; where the channels differ, of a linear map of the student's that is learnt."""

    def __init__(self, student_channels: int, teacher_channels: int) -> None:
        super().__init__()
        self.channels = (student_channels, teacher_channels)
        same = student_channels == teacher_channels
        self.projector = nn.Identity() if same else nn.Conv2d(student_channels, teacher_channels, 1)

    def forward(self, student_map: Tensor, teacher_map: Tensor) -> Tensor:
        """Give the scalar loss of two maps [B, C, H, W]."""
        check_channels(student_map, teacher_map, self.channels)
        return pearson_kd(self.projector(student_map), teacher_map)
