"""WTTM: the teacher's distribution raised to a power, each image weighted (Zheng & Yang, ICLR 2024)."""

from torch import Tensor, nn

from distill_dynamics.losses.maps import at_least_float32


def transformed_kd(student_logits: Tensor, teacher_logits: Tensor, exponent: float = 0.1) -> Tensor:
    """Mean over B of U · KL(q ‖ p_s), q ∝ p_t^γ, U = Σ p_t^γ; logits [B, K]; nats.

    p is the softmax, γ the exponent: the student has no temperature, so that it is pushed to be as sure as
    it can. U, up to K^(1 - γ) for a teacher that knows nothing, weighs down images it is sure of. The factor
    is that of the authors' code.
    """
    log_power = exponent * at_least_float32(teacher_logits.detach()).log_softmax(1)
    log_sum = log_power.logsumexp(1, keepdim=True)
    target = log_power - log_sum
    divergence = (target.exp() * (target - at_least_float32(student_logits).log_softmax(1))).sum(1)
    return (log_sum.squeeze(1).exp() * divergence).mean()


class WTTM(nn.Module):
    """`transformed_kd`."""

    def __init__(self, exponent: float = 0.1) -> None:
        super().__init__()
        self.exponent = exponent

    def forward(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """Give the scalar loss of logits [B, K]."""
        return transformed_kd(student_logits, teacher_logits, self.exponent)
