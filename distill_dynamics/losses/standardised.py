"""StandardisedKD: SoftKD of standardised logits (Sun et al., Logit Standardization, CVPR 2024)."""

from torch import Tensor, nn

from distill_dynamics.losses.logits import soft_kd
from distill_dynamics.losses.maps import at_least_float32

EPS = 1e-7  # as in the authors' code


def standardised_kd(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 2.0) -> Tensor:
    """`soft_kd` of logits [B, K] that were brought to mean 0 and deviation 1 over the classes; nats.

    z ← (z - mean) / (1e-7 + std), std with K - 1, of student and teacher; then T² · KL. The student is free
    in the size of its logits. The authors weigh it 9 beside 0.1 of the cross-entropy (for ViTs with T = 3:
    10), and their code has the same T².
    """
    return soft_kd(_standardised(student_logits), _standardised(teacher_logits), temperature)


def _standardised(logits: Tensor) -> Tensor:
    logits = at_least_float32(logits)
    return (logits - logits.mean(1, keepdim=True)) / (EPS + logits.std(1, keepdim=True))


class StandardisedKD(nn.Module):
    """`standardised_kd`. At T = 2 the weight 9 is the authors'."""

    def __init__(self, temperature: float = 2.0) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """Give the scalar loss of logits [B, K]."""
        return standardised_kd(student_logits, teacher_logits, self.temperature)
