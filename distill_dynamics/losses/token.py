"""TokenKD, ClassTokenKD, PooledKD: the student's features are the teacher's, standardised (Theia, UNIC 2024).

For teachers without a head, whose channels have scales of their own. Letters: P vectors, D channels.
"""

from collections.abc import Iterable, Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill_dynamics.losses.maps import SeesPooled, at_least_float32, check_channels, match_grids
from distill_dynamics.losses.pca_target import rotated, whitening
from distill_dynamics.losses.phis_target import hadamard, phi_s
from distill_dynamics.losses.token_statistics import TokenStatistics

Standardise = Literal["channel", "whiten", "phi-s"]

LEAST_A_CHANNEL = 10
"""Vectors for each channel that whitening asks for: of fewer, the least eigenvalues are much too small, and
what is divided by them is not of variance 1 for other images."""


def token_kd(student: Tensor, teacher: Tensor) -> Tensor:
    """0.9 · (1 - cosine) + 0.1 · smooth L1 of tokens [..., D]; means. The shares are Theia's."""
    student, teacher = at_least_float32(student), at_least_float32(teacher.detach())
    apart = 1 - F.cosine_similarity(student, teacher, dim=-1)
    return 0.9 * apart.mean() + 0.1 * F.smooth_l1_loss(student, teacher)


class _StandardisedKD(nn.Module):
    """`token_kd` of a linear map of the student's features and the teacher's, standardised."""

    word: str
    """What is read of the teacher: "teacher_map"."""
    mean: Tensor
    std: Tensor
    basis: Tensor
    scale: Tensor

    def __init__(
        self, student_channels: int, teacher_channels: int, standardise: Standardise = "channel"
    ) -> None:
        super().__init__()
        self.channels = (student_channels, teacher_channels)
        self.standardise = standardise
        self.projector = nn.Linear(student_channels, teacher_channels)
        self.register_buffer("mean", torch.zeros(teacher_channels))
        if standardise == "channel":
            self.register_buffer("std", torch.ones(teacher_channels))
            return
        if standardise == "phi-s":
            try:
                hadamard(teacher_channels)
            except ValueError as error:
                raise ValueError(f"standardise: phi-s: {error}; channel takes any width") from error
        elif standardise != "whiten":
            raise ValueError(f"standardise is channel, whiten or phi-s, not {standardise!r}")
        self.register_buffer("basis", torch.eye(teacher_channels))
        self.register_buffer("scale", torch.ones(teacher_channels))

    def fit(self, batches: Iterable[Mapping[str, Tensor]]) -> None:
        """Measure what the teacher's features are standardised with."""
        statistics = TokenStatistics()
        for batch in batches:
            statistics.add(self._compared(batch))
        mean, covariance = statistics.result()
        self.mean.copy_(mean)
        if self.standardise == "channel":
            variance = covariance.diagonal()
            self.std.copy_(variance.clamp(min=1e-4 * float(variance.mean())).sqrt())  # of dead channels, too
            return
        if self.standardise == "whiten" and statistics.count < LEAST_A_CHANNEL * len(mean):
            raise ValueError(
                f"whiten: {statistics.count} vectors of {len(mean)} channels are too few to fit it to "
                f"({LEAST_A_CHANNEL} a channel are needed): set standardise: channel or phi-s"
            )
        basis, scale = (phi_s if self.standardise == "phi-s" else whitening)(covariance)
        self.basis.copy_(basis)
        self.scale.copy_(scale)

    def _compared(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Of the teacher what is compared."""
        return batch[self.word]

    def standardised(self, teacher: Tensor) -> Tensor:
        """The target [..., D] of the teacher's features [..., D]: mean 0, variance 1 a channel.

        Less where a variance is so small that it was clamped.
        """
        centred = at_least_float32(teacher) - self.mean
        if self.standardise == "channel":
            return centred / self.std
        return rotated(centred, self.basis, self.scale)


class TokenKD(SeesPooled, _StandardisedKD):
    """`token_kd` of a linear map of the student's tokens and the teacher's, standardised.

    Maps are pooled to the smaller grid (`match_grids`). What the teacher's tokens are standardised with is
    fitted before training, to 1,024 training images on that grid.

    Args:
        student_channels, teacher_channels: of the maps.
        standardise: "channel": (x - μ) / σ, each channel by itself. "phi-s": PHI-S (`phis_target.py`), a
            rotation to channels of equal variance and one scale for all: angles between the teacher's centred
            tokens, and ratios of their distances, stay what they are. "whiten": Uᵀ(x - μ) / √λ, principal
            components of variance 1 (λ clamped at 1e-3 · λ_1), none correlated with another: directions in
            which the teacher hardly varies count as much as its first.

    Raises:
        ValueError: features of other channels than those declared, a width that has no Hadamard matrix with
            "phi-s", with "whiten" fewer than ten vectors a channel to fit to.
    """

    word = "teacher_map"

    def _compared(self, batch: Mapping[str, Tensor]) -> Tensor:
        # The student's map comes for its grid; it may be missing where there is one grid.
        return match_grids(batch.get("student_map", batch[self.word]), batch[self.word])[1]

    def forward(self, student_map: Tensor, teacher_map: Tensor) -> Tensor:
        """Give the scalar loss of two maps [B, C, H, W]."""
        check_channels(student_map, teacher_map, self.channels)
        student_map, teacher_map = match_grids(student_map, at_least_float32(teacher_map))
        return token_kd(
            self.projector(student_map.movedim(1, -1)), self.standardised(teacher_map.movedim(1, -1))
        )


class ClassTokenKD(_StandardisedKD):
    """The same of the class tokens of two blocks, before any final norm.

    Of other prefix tokens (registers, a distillation token) none is compared: they have no counterpart in
    another model. Arguments and errors as for `TokenKD`; "whiten" finds 1,024 vectors, for 102 channels.
    """

    word = "teacher_class_token"

    def forward(self, student_class_token: Tensor, teacher_class_token: Tensor) -> Tensor:
        """Give the scalar loss of class tokens [B, C_s] and [B, C_t]."""
        check_channels(student_class_token, teacher_class_token, self.channels)
        return token_kd(self.projector(student_class_token), self.standardised(teacher_class_token))


class PooledKD(_StandardisedKD):
    """The same of pooled features, what a classifier reads: every model has them, also one without a head.

    Arguments and errors as for `ClassTokenKD`.
    """

    word = "teacher_pooled"

    def forward(self, student_pooled: Tensor, teacher_pooled: Tensor) -> Tensor:
        """Give the scalar loss of features [B, D_s] and [B, D_t]."""
        check_channels(student_pooled, teacher_pooled, self.channels)
        return token_kd(self.projector(student_pooled), self.standardised(teacher_pooled))
