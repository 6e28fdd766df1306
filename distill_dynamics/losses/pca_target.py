"""PCATarget: what a student of few channels can hold of the teacher's tokens, in its own width.

A linear map from k channels reaches the teacher's tokens up to the share of variance that lies outside their
k largest principal components (Eckart and Young, 1936). Here these are the target: no more is asked for.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from distill_dynamics.losses.maps import at_least_float32, check_channels, match_grids, without_autocast
from distill_dynamics.losses.token_statistics import token_statistics
from distill_dynamics.losses.unexplained_variance import unexplained_variance


@without_autocast
def pca_target(teacher_map: Tensor, mean: Tensor, basis: Tensor, scale: Tensor) -> Tensor:
    """Map [B, C, H, W] → [B, k, H, W]: scale · Uᵀ(x - μ) by position; mean [C], basis U [C, k], scale [k]."""
    centred = at_least_float32(teacher_map) - mean[:, None, None]
    return torch.einsum("ck,bchw->bkhw", basis, centred) * scale[:, None, None]


@without_autocast
def rotated(centred: Tensor, basis: Tensor, scale: Tensor) -> Tensor:
    """The same of vectors [..., C] that have the mean 0: [..., k]."""
    return centred @ basis * scale


def whitening(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvectors U [C, C] of a covariance, largest first, and 1 / √λ [C], λ clamped at 1e-3 · λ_1."""
    values, vectors = torch.linalg.eigh(covariance)
    return vectors.flip(1), _not_too_small(values.flip(0)).rsqrt()


def _not_too_small(variances: Tensor) -> Tensor:
    return variances.clamp(min=1e-3 * variances.max())


class PCATarget(nn.Module):
    """Mean squared error of the student's map, after a learnt linear map, and the teacher's first components.

    y = λ̄^(-1/2) · U_kᵀ(x - μ), with mean μ, eigenvectors U and eigenvalues λ of the covariance of the
    teacher's tokens, λ̄ the mean of the k that are kept. The loss is divided by the variance of the components
    that count: a student that gives the mean has the loss 1. All is fitted before training, on 1,024 training
    images. A cache holds k channels in the place of C_t.

    Args:
        student_channels, teacher_channels: of the maps.
        rank: k; the student's channels where left out. Or a schedule of the progress, coarse to fine: at each
            step the first so many of the components count.
        whiten: divide each component by its own deviation, √λ_i clamped at √(1e-3 · λ_1), not by √λ̄.
        components: "principal", or "random": as many random orthonormal directions, the control.
        rotate: learn a linear map of the student's channels; else its first k are compared as they are.

    Raises:
        ValueError: a rank below 1, above the teacher's channels or, without `rotate`, the student's; maps
            with other channels than those declared.
    """

    mean: Tensor
    basis: Tensor
    scale: Tensor
    variance: Tensor

    def __init__(
        self,
        student_channels: int,
        teacher_channels: int,
        rank: int | Callable[[float], float] | None = None,
        whiten: bool = False,
        components: Literal["principal", "random"] = "principal",
        rotate: bool = True,
    ) -> None:
        super().__init__()
        most = min(student_channels, teacher_channels)
        kept = most if rank is None or callable(rank) else rank
        if not 1 <= kept <= (teacher_channels if rotate else most):
            raise ValueError(
                f"rank {kept}: the teacher has {teacher_channels} channels, the student {student_channels}"
            )
        self.channels = (student_channels, teacher_channels)
        self.kept, self.rank, self.whiten, self.components = kept, rank, whiten, components
        self.projector = nn.Conv2d(student_channels, kept, 1) if rotate else None
        self.register_buffer("mean", torch.zeros(teacher_channels))
        self.register_buffer("basis", torch.eye(teacher_channels, kept))
        self.register_buffer("scale", torch.ones(kept))
        self.register_buffer("variance", torch.ones(kept))

    def fit(self, batches: Iterable[Mapping[str, Tensor]]) -> None:
        """Find mean, components and scale of the teacher's tokens."""
        mean, covariance = token_statistics(batches)
        if self.components == "principal":
            vectors = torch.linalg.eigh(covariance).eigenvectors.flip(1)[:, : self.kept]
        else:
            drawn = torch.randn(len(covariance), self.kept, generator=torch.Generator().manual_seed(0))
            vectors = torch.linalg.qr(drawn.to(covariance)).Q
        values = (vectors * (covariance @ vectors)).sum(0)  # variances; of principal ones the eigenvalues
        spread = _not_too_small(values) if self.whiten else values.mean().expand(self.kept)
        self.mean.copy_(mean)
        self.basis.copy_(vectors)
        self.scale.copy_(spread.rsqrt())
        self.variance.copy_(values / spread)

    def forward(self, student_map: Tensor, teacher_map: Tensor, progress: float) -> Tensor:
        """Give the scalar loss of two maps [B, C, H, W]; the teacher's may be its `cacheable` part."""
        target = self.cacheable(student_map, teacher_map)
        if self._is_square:
            target = pca_target(target, self.mean, self.basis, self.scale)
        student_map, target = match_grids(student_map, target)
        check_channels(student_map, target, (self.channels[0], self.kept))
        student = student_map if self.projector is None else self.projector(student_map)
        count = self.kept
        if callable(self.rank):
            count = round(self.rank(progress))
            if not 1 <= count <= self.kept:
                raise ValueError(f"rank {count} at {progress:.3g} of the training: from 1 to {self.kept}")
        difference = at_least_float32(student)[:, :count] - target.detach()[:, :count]
        return difference.square().mean() / self.variance[:count].mean()

    def cacheable(self, student_map: Tensor, teacher_map: Tensor) -> Tensor:
        """The target, pooled to the smaller grid: [B, k, min H, min W]. The map itself where k = C_t.

        One that is a target already stays as it is.
        """
        pooled = match_grids(student_map, teacher_map)[1]
        if self._is_square or teacher_map.shape[1] == self.kept:
            return pooled
        check_channels(student_map, teacher_map, (None, self.channels[1]))
        return pca_target(pooled, self.mean, self.basis, self.scale)

    @property
    def floor(self) -> float | Callable[[Tensor, int], Tensor]:
        """The least that any linear map reaches: 0 for no more components than the student has channels."""
        return 0.0 if self.kept <= self.channels[0] else self._floor

    def _floor(self, covariance: Tensor, channels: int) -> Tensor:
        to_target = (self.basis * self.scale).to(covariance)
        target = to_target.T @ covariance @ to_target
        return unexplained_variance(target, channels) / self.kept / self.variance.to(covariance).mean()

    @property
    def _is_square(self) -> bool:
        """Whether a target has as many channels as a map, and so cannot be told from it."""
        return self.kept == self.channels[1]
