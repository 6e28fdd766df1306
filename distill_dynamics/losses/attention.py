"""AttentionKD: the student attends where the teacher does (AttnDistill, Wang et al. 2022)."""

import torch
from torch import Tensor, nn

from distill_dynamics.losses.maps import at_least_float32


def attention_kd(student_attention: Tensor, teacher_attention: Tensor) -> Tensor:
    """KL from the teacher's attention to the student's, both the mean over their heads; nats.

    Attention [B, heads, N, N] from patch to patch, rows of sum 1; the result is the mean over B and rows. The
    heads need not be equally many; the grids must be.
    """
    student, teacher = (at_least_float32(x).mean(1) for x in (student_attention, teacher_attention.detach()))
    return (torch.xlogy(teacher, teacher) - torch.xlogy(teacher, student)).sum(2).mean()


class AttentionKD(nn.Module):
    """`attention_kd`, which has nothing to learn.

    A block whose attention is read runs without its fused kernel: B · heads · N² numbers are computed and
    kept.
    """

    def forward(self, student_attention: Tensor, teacher_attention: Tensor) -> Tensor:
        """Give the scalar loss of attention [B, heads, N, N]."""
        return attention_kd(student_attention, teacher_attention)
