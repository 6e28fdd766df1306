"""AttentionKD: the student attends where the teacher does (AttnDistill, Wang et al. 2022)."""

from torch import Tensor, nn

from distill_dynamics.losses.maps import at_least_float32


def attention_kd(student_attention: Tensor, teacher_attention: Tensor) -> Tensor:
    """KL from the teacher's attention to the student's, both the mean over their heads; nats.

    Attention [B, heads, N, N] from patch to patch, rows of sum 1; the result is the mean over B and rows. The
    heads need not be equally many; the grids must be. Shares below 1e-6 count as that. AttnDistill takes the
    class token's row, combines heads by the sum of their logarithms with a temperature, and fits grids.
    """
    student, teacher = (
        at_least_float32(x).mean(1).clamp(min=1e-6) for x in (student_attention, teacher_attention.detach())
    )
    return (teacher * (teacher.log() - student.log())).sum(2).mean()


class AttentionKD(nn.Module):
    """`attention_kd`, which has nothing to learn.

    A block whose attention is read runs without its fused kernel: B · heads · N² numbers are computed and
    kept.
    """

    def forward(self, student_attention: Tensor, teacher_attention: Tensor) -> Tensor:
        """Give the scalar loss of attention [B, heads, N, N]."""
        return attention_kd(student_attention, teacher_attention)
