"""DKD: the target class and the others apart (Zhao et al., Decoupled Knowledge Distillation, CVPR 2022)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill_dynamics.losses.maps import at_least_float32, without_own


def decoupled_kd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    targets: Tensor,
    alpha: float = 1.0,
    beta: float = 0.5,
    temperature: float = 1.0,
) -> Tensor:
    """α · T² · KL of (target, all others) + β · T² · KL among the others; logits [B, K], targets [B]; nats.

    With p the softmax of z / T, p_y the target's and p̂ the softmax over the other classes alone:

        α T² KL([p_y, 1 - p_y] teacher ‖ student) + β T² KL(p̂ teacher ‖ p̂ student), means over B

    As in mdistiller's `DKD.py`, but by log_softmax: its log(softmax) can be -∞. With α = 1 and β = 1 - p_y of
    the teacher it would be SoftKD. For CIFAR the authors take β 8, T 4 and a weight that rises over 20 epochs
    (a schedule of the term). Labels are whole: it has no meaning under mixup.
    """
    parts = []
    for logits in (student_logits, teacher_logits.detach()):
        logits = at_least_float32(logits) / temperature
        others = without_own(logits, targets)
        of_target = logits.gather(1, targets[:, None])
        pair = torch.cat([of_target, others.logsumexp(1, keepdim=True)], dim=1)
        parts.append((pair.log_softmax(1), others.log_softmax(1)))
    (student_pair, student_others), (teacher_pair, teacher_others) = parts
    of_target = F.kl_div(student_pair, teacher_pair, reduction="batchmean", log_target=True)
    of_others = F.kl_div(student_others, teacher_others, reduction="batchmean", log_target=True)
    return temperature**2 * (alpha * of_target + beta * of_others)


class DKD(nn.Module):
    """`decoupled_kd`; its weights are the authors'."""

    def __init__(self, alpha: float = 1.0, beta: float = 0.5, temperature: float = 1.0) -> None:
        super().__init__()
        self.alpha, self.beta, self.temperature = alpha, beta, temperature

    def forward(self, student_logits: Tensor, teacher_logits: Tensor, targets: Tensor) -> Tensor:
        """Give the scalar loss of logits [B, K] and classes [B]."""
        return decoupled_kd(student_logits, teacher_logits, targets, self.alpha, self.beta, self.temperature)
