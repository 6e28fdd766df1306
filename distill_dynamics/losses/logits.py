"""SoftKD: the student learns the teacher's class probabilities (Hinton et al. 2015).

Of a teacher that answered earlier only the likeliest classes may be at hand: `TopClasses`.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
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
    log_student = softened(student_logits, temperature)
    log_teacher = softened(teacher_logits.detach(), temperature)
    divergence = F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
    return divergence * temperature**2


class TopClasses(NamedTuple):
    """A teacher's softened answers, cut off after the k likeliest classes (as TinyViT stores them, 2022)."""

    log_probs: Tensor
    """[B, k], nats, in any order of classes."""
    classes: Tensor
    """[B, k], whole numbers; no class twice."""
    rest: Tensor
    """[B], the probability of all other classes together; 0 where k = K."""


def softened(logits: Tensor, temperature: float) -> Tensor:
    """Logarithms of the class probabilities, [B, K], of logits [B, K] divided by T; in float32 at least."""
    return F.log_softmax(at_least_float32(logits) / temperature, dim=1)


def top_classes(teacher_logits: Tensor, k: int, temperature: float = 1.0) -> TopClasses:
    """The k likeliest classes of logits [B, K] softened by T; all K where k ≥ K, in the classes' order.

    In float32 at least. `rest` is summed up over the other classes, not taken from 1, where a sure
    teacher's would be lost in round-off.
    """
    log_probs = softened(teacher_logits, temperature)
    count = log_probs.shape[1]
    if k >= count:
        classes = torch.arange(count, device=log_probs.device).expand_as(log_probs)
        return TopClasses(log_probs, classes, log_probs.new_zeros(len(log_probs)))
    likeliest, classes = log_probs.topk(k, dim=1)
    return TopClasses(likeliest, classes, log_probs.exp().scatter(1, classes, 0.0).sum(dim=1))


def soft_kd_top(student_logits: Tensor, teacher: TopClasses, temperature: float = 1.0) -> Tensor:
    """`soft_kd` from the teacher's likeliest classes, the rest taken as spread evenly over the others.

    Student logits [B, K], softened by the same T as the teacher's answers were; a scalar in nats, in float32
    at least. With p the teacher's, q the student's probabilities and m = rest, for each image

        sum over stored k of p_k (log p_k - log q_k)  +  sum over the others of m/n (log(m/n) - log q_j)

    where n = K - k. Exact if k = K. Else `soft_kd` is larger by what the others' true distribution within
    the rest has that the even one has not,

        m (H_even - H_true) - sum over the others of (p_j - m/n) log q_j

    with H the entropies of the others' distributions: for an image at most m (log n + d) T² either way, where
    d is how far the student's log q lie apart among the others. The gradient with respect to a student's
    logit differs by |p_j - m/n| T/B for the others (2 m (1 - 1/n) T/B at most in all) and not at all for the
    stored ones. The two losses on average, where the student's logits are others (left: Gaussian with a
    deviation of 2, and nearly equal for Fashion-MNIST) and where they are the teacher's with Gaussian errors
    of deviation 1 (right):

        teacher                                  k of K         m      full    cut     full    cut
        Gaussian logits, deviation 2             100 of 1000    0.24   3.88    3.70    0.48    0.74
                                   3                            0.06   5.48    5.41    0.43    0.55
                                   5                            0.002  7.20    7.20    0.30    0.31
                                   8                            2e-5   8.01    8.01    0.20    0.20
        the packaged one, Fashion-MNIST sample   1 of 10        0.19   1.58    1.48    0.18    0.27
                                                 3 of 10        0.08   1.58    1.58    0.16    0.16

    `ValueError` unless both are of equally many images.
    """
    if student_logits.ndim != 2 or len(student_logits) != len(teacher.log_probs):
        raise ValueError(
            f"expected logits [B, K] of {len(teacher.log_probs)} images, got {list(student_logits.shape)}"
        )
    log_student = softened(student_logits, temperature)
    log_teacher = at_least_float32(teacher.log_probs)
    log_stored = log_student.gather(1, teacher.classes.long())
    divergence = (log_teacher.exp() * (log_teacher - log_stored)).sum()
    if others := log_student.shape[1] - log_teacher.shape[1]:
        rest = at_least_float32(teacher.rest)
        log_others = log_student.sum(dim=1) - log_stored.sum(dim=1)
        divergence = divergence + (torch.xlogy(rest, rest / others) - rest / others * log_others).sum()
    return divergence / len(log_student) * temperature**2


class SoftKD(nn.Module):
    """`soft_kd` at a temperature; the paper's is 1.

    The temperature may be a schedule, any function of `progress`, the share of the training that is done.
    `UserError` for one that is not above 0.
    """

    takes_top_classes = True
    """Its teacher may be `TopClasses`: what is stored of answers that were cut off."""

    def __init__(self, temperature: float | Callable[[float], float] = 1.0) -> None:
        super().__init__()
        for value in [temperature] if not callable(temperature) else [temperature(0.0), temperature(1.0)]:
            if not (value > 0 and math.isfinite(value)):
                raise UserError(f"temperature is a number above 0, not {value}")
        self.temperature = temperature

    def at(self, progress: float) -> float:
        """The temperature there."""
        return self.temperature(progress) if callable(self.temperature) else self.temperature

    def forward(
        self, student_logits: Tensor, teacher_logits: Tensor | TopClasses, progress: float = 0.0
    ) -> Tensor:
        """Give the scalar loss of logits [B, K]."""
        temperature = self.at(progress)
        if isinstance(teacher_logits, TopClasses):
            return soft_kd_top(student_logits, teacher_logits, temperature)
        return soft_kd(student_logits, teacher_logits, temperature)


class DistilledSoftKD(SoftKD):
    """`SoftKD` of the distillation token's logits, as DeiT has it (Touvron et al. 2021, Section 4).

    Those of a student without that token are its logits, and this is `SoftKD` then.
    """

    def forward(
        self, student_dist_logits: Tensor, teacher_logits: Tensor | TopClasses, progress: float = 0.0
    ) -> Tensor:
        """Give the scalar loss of logits [B, K]."""
        return super().forward(student_dist_logits, teacher_logits, progress)
