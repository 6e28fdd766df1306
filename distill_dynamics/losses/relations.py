"""DIST: the relations among classes and among images, by correlation (Huang et al., NeurIPS 2022)."""

import torch.nn.functional as F
from torch import Tensor, nn

from distill_dynamics.losses.maps import at_least_float32
from distill_dynamics.losses.ranks import global_batch


def dist_kd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    beta: float = 1.0,
    gamma: float = 1.0,
    temperature: float = 1.0,
) -> Tensor:
    """T² · [β · (1 - mean over images of ρ over classes) + γ · (1 - mean over classes of ρ over images)].

    ρ is Pearson's correlation of the softmax of logits [B, K] / T. Between 0 and 2 T² (β + γ). The second
    part needs the global batch: the probabilities of all ranks are gathered, which must be equally many, and
    every rank has the loss of one process. The factors are those of the authors' code (γ 1 for ImageNet,
    β = γ = 2 and T = 4 for CIFAR).
    """
    student, teacher = (
        global_batch((at_least_float32(logits) / temperature).softmax(1))
        for logits in (student_logits, teacher_logits.detach())
    )
    among_classes = 1 - correlation(student, teacher).mean()
    among_images = 1 - correlation(student.T, teacher.T).mean()
    return temperature**2 * (beta * among_classes + gamma * among_images)


def correlation(x: Tensor, y: Tensor) -> Tensor:
    """Pearson's correlation of each row of [N, M] with the other's: [N]. 0 for a row that is constant."""
    x, y = (values - values.mean(1, keepdim=True) for values in (x, y))
    return F.cosine_similarity(x, y, dim=1, eps=1e-8)


class DIST(nn.Module):
    """`dist_kd`; its weights are the authors'."""

    def __init__(self, beta: float = 1.0, gamma: float = 1.0, temperature: float = 1.0) -> None:
        super().__init__()
        self.beta, self.gamma, self.temperature = beta, gamma, temperature

    def forward(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """Give the scalar loss of logits [B, K]."""
        return dist_kd(student_logits, teacher_logits, self.beta, self.gamma, self.temperature)
