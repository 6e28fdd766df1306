"""HardKD: the teacher's most likely class as a label (DeiT, Touvron et al. 2021)."""

import torch.nn.functional as F
from torch import Tensor, nn

from distill_dynamics.losses.maps import at_least_float32


def hard_kd(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Cross-entropy of logits [B, K] with the teacher's most likely class; a scalar, the mean over B, nats.

    F.cross_entropy(student_logits, teacher_logits.argmax(1)), as in DeiT's `losses.py`, where it weighs 0.5
    and the labels' cross-entropy of the class token 0.5.
    """
    return F.cross_entropy(at_least_float32(student_logits), teacher_logits.argmax(dim=1))


class HardKD(nn.Module):
    """`hard_kd` of the distillation token's logits; of the logits where there is no such token."""

    def forward(self, student_dist_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """Give the scalar loss of logits [B, K]."""
        return hard_kd(student_dist_logits, teacher_logits)
