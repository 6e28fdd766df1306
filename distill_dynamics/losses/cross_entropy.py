"""Cross-entropy with the labels: what there is to learn without a teacher."""

import torch.nn.functional as F
from torch import Tensor, nn

from distill_dynamics.losses.maps import at_least_float32


class CrossEntropy(nn.Module):
    """torch's cross-entropy, the mean over the batch in nats, in float32 at least.

    With `label_smoothing` ε the label weighs 1 - ε + ε/K, every other class ε/K (Szegedy et al. 2016).
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing

    def forward(self, student_logits: Tensor, targets: Tensor) -> Tensor:
        """Give the scalar loss of logits [B, K] and targets [B]."""
        return F.cross_entropy(
            at_least_float32(student_logits), targets, label_smoothing=self.label_smoothing
        )
