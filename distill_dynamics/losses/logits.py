"""SoftKD: the student learns the teacher's class probabilities (Hinton et al. 2015)."""

import torch.nn.functional as F
from torch import Tensor, nn

from distill_dynamics.errors import UserError
from distill_dynamics.losses.maps import at_least_float32


def soft_kd(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Kullback-Leibler divergence from the teacher's softened classes to the student's, times T².

    Logits [B, K] both; the result is a scalar in nats, the mean over B, in float32 at least. T² keeps
    the gradient's size independent of T. The slow form, with p_t and p_s the softmax of logits / T:

        sum over b, k of p_t[b, k] * (log p_t[b, k] - log p_s[b, k]) / B * T²

    No gradient reaches the teacher. `ValueError` unless both have the same shape.
    """
    if student_logits.ndim != 2 or student_logits.shape != teacher_logits.shape:
        raise ValueError(
            "expected logits [B, K] of the same images and classes, "
            f"got {list(student_logits.shape)} (student) and {list(teacher_logits.shape)} (teacher)"
        )
    log_student = F.log_softmax(at_least_float32(student_logits) / temperature, dim=1)
    log_teacher = F.log_softmax(at_least_float32(teacher_logits.detach()) / temperature, dim=1)
    divergence = F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
    return divergence * temperature**2


class SoftKD(nn.Module):
    """`soft_kd` at a fixed temperature; the paper's is 1."""

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        if not temperature > 0:
            raise UserError(f"temperature is a number above 0, not {temperature}")
        self.temperature = temperature

    def forward(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """Give the scalar loss of logits [B, K]."""
        return soft_kd(student_logits, teacher_logits, self.temperature)
