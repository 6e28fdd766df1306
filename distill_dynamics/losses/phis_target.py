"""PHISTarget: the teacher's tokens with equal variance in every channel (PHI-S, Ranzinger et al. 2024).

For mixing teachers whose channels have scales of their own: after the rotation no channel rules the loss.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from distill_dynamics.losses.maps import SeesPooled, at_least_float32, check_channels, match_grids
from distill_dynamics.losses.pca_target import pca_target
from distill_dynamics.losses.token_statistics import token_statistics


def hadamard(size: int) -> Tensor:
    """A Hadamard matrix [size, size] of ±1, rows orthogonal; float64.

    Sylvester's doubling (1867) of one of Paley's (1933). Only 1, 2 and multiples of 4 can have one, and 64,
    192, 384, 768 and 1024 do. `ValueError` for a size that these do not reach.
    """
    doublings = 0
    while size >= 1:
        if (base := _base(size)) is not None:
            for _ in range(doublings):
                base = torch.cat([torch.cat([base, base], 1), torch.cat([base, -base], 1)])
            return base
        if size % 2:
            break
        size, doublings = size // 2, doublings + 1
    raise ValueError(f"no Hadamard matrix of size {size << doublings} is known here")


def _base(size: int) -> Tensor | None:
    """Of size 1, or by Paley's first or second construction; None where neither has one."""
    if size == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    if size % 4 == 0 and _is_prime(size - 1):
        q = _residues(size - 1)
        ones = torch.ones(len(q), 1, dtype=torch.float64)
        skew = torch.cat([torch.cat([torch.zeros(1, 1), ones.T], 1), torch.cat([-ones, q], 1)])
        return skew + torch.eye(size, dtype=torch.float64)
    if size % 4 == 0 and (size // 2 - 1) % 4 == 1 and _is_prime(size // 2 - 1):
        q = _residues(size // 2 - 1)
        ones = torch.ones(len(q), 1, dtype=torch.float64)
        symmetric = torch.cat([torch.cat([torch.zeros(1, 1), ones.T], 1), torch.cat([ones, q], 1)])
        pairs = torch.tensor([[1.0, 1.0], [1.0, -1.0]]).double()
        of_zero = torch.tensor([[1.0, -1.0], [-1.0, -1.0]]).double()
        return torch.kron(symmetric, pairs) + torch.kron(torch.eye(len(symmetric)).double(), of_zero)
    return None


def _residues(prime: int) -> Tensor:
    """Jacobsthal's matrix: entry i, j is 1 where i - j is a square modulo the prime, else -1; 0 for i = j."""
    squares = {n * n % prime for n in range(1, prime)}
    signs = torch.tensor([0.0, *(1.0 if n in squares else -1.0 for n in range(1, prime))]).double()
    rows = torch.arange(prime)
    return signs[(rows[:, None] - rows[None]) % prime]


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, int(number**0.5) + 1))


def phi_s(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Of a covariance the rotation U Hᵀ / √C [C, C], used from the right, and the scale λ̄^(-1/2) [C]."""
    values, vectors = torch.linalg.eigh(covariance)
    count = len(values)
    return vectors @ hadamard(count).to(vectors).T / count**0.5, values.mean().rsqrt().expand(count)


class PHISTarget(SeesPooled, nn.Module):
    """Mean squared error of the student's map, through a learnt linear map, and the rotated teacher's.

    y = λ̄^(-1/2) · H Uᵀ(x - μ) / √C, with mean μ, eigenvectors U and mean eigenvalue λ̄ of the covariance of
    the teacher's tokens, H a Hadamard matrix: on the teacher's grid every channel of y has the variance 1.
    Fitted before training.

    `ValueError` for a teacher's width without a known Hadamard matrix, and for maps of other channels.
    """

    mean: Tensor
    basis: Tensor
    scale: Tensor

    def __init__(self, student_channels: int, teacher_channels: int) -> None:
        super().__init__()
        self.channels = (student_channels, teacher_channels)
        hadamard(teacher_channels)  # refuses a width that has none
        self.projector = nn.Conv2d(student_channels, teacher_channels, 1)
        self.register_buffer("mean", torch.zeros(teacher_channels))
        self.register_buffer("basis", torch.eye(teacher_channels))
        self.register_buffer("scale", torch.ones(teacher_channels))

    def fit(self, batches: Iterable[Mapping[str, Tensor]]) -> None:
        """Find mean, rotation and scale of the teacher's tokens."""
        mean, covariance = token_statistics(batches)
        basis, scale = phi_s(covariance)
        self.mean.copy_(mean)
        self.basis.copy_(basis)
        self.scale.copy_(scale)

    def forward(self, student_map: Tensor, teacher_map: Tensor) -> Tensor:
        """Give the scalar loss of two maps [B, C, H, W]."""
        check_channels(student_map, teacher_map, self.channels)
        student_map, teacher_map = match_grids(student_map, teacher_map.detach())
        target = pca_target(teacher_map, self.mean, self.basis, self.scale)
        return (at_least_float32(self.projector(student_map)) - target).square().mean()
