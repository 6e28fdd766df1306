"""NKD: the teacher's target class as a weight, the others normalised (Yang et al., ICCV 2023)."""

import torch.nn.functional as F
from torch import Tensor, nn

from distill_dynamics.losses.maps import at_least_float32, without_own


def normalised_kd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    targets: Tensor,
    gamma: float = 1.0,
    temperature: float = 1.0,
) -> Tensor:
    """-p_t[y] log p_s[y] - γ T² Σ over k ≠ y of p̂_t log p̂_s; logits [B, K], targets [B]; nats, mean over B.

    p is the softmax of z (no T in the first term), p̂ that of z / T over the classes other than y. As in
    cls_KD's `dis_losses/nkd.py`; its older file masks no class. The authors add it to the cross-entropy with
    weight 1, γ 1 and T 1 for ImageNet. The second term is a cross-entropy: it does not end at 0.
    """
    student_logits = at_least_float32(student_logits)
    teacher_logits = at_least_float32(teacher_logits.detach())
    own = targets[:, None]
    weight = teacher_logits.softmax(1).gather(1, own)
    of_target = -(weight * student_logits.log_softmax(1).gather(1, own)).mean()
    student_others, teacher_others = (
        without_own(logits / temperature, targets) for logits in (student_logits, teacher_logits)
    )
    of_others = F.cross_entropy(student_others, teacher_others.softmax(1))
    return of_target + gamma * temperature**2 * of_others


class NKD(nn.Module):
    """`normalised_kd`; its weights are the authors'."""

    def __init__(self, gamma: float = 1.0, temperature: float = 1.0) -> None:
        super().__init__()
        self.gamma, self.temperature = gamma, temperature

    def forward(self, student_logits: Tensor, teacher_logits: Tensor, targets: Tensor) -> Tensor:
        """Give the scalar loss of logits [B, K] and classes [B]."""
        return normalised_kd(student_logits, teacher_logits, targets, self.gamma, self.temperature)
