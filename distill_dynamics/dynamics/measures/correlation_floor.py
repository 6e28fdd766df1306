"""Correlation floor: the capacity floor of standardised channels, in which no large channel rules.

Letters: C channels, k those of the student.
"""

from torch import Tensor

from distill_dynamics.dynamics.measures.capacity_floor import capacity_floor


def correlation_floor(fitted: Tensor, measured: Tensor, channels: int) -> Tensor:
    """`capacity_floor` of the correlation matrices of two covariances [C, C]: scalar, 0 to 1.

    Every channel counts alike, whatever its variance, as in `ProjectorKD`. Channels that do not vary are left
    out of account.
    """
    return capacity_floor(correlation(fitted), correlation(measured), channels)


def correlation(covariance: Tensor) -> Tensor:
    """Covariance [C, C] → correlation matrix; rows and columns of channels that do not vary are 0."""
    scale = covariance.diagonal().clamp(min=0).rsqrt().nan_to_num(posinf=0)
    return scale[:, None] * covariance * scale
