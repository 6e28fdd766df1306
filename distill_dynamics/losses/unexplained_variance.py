"""What a linear map from few channels cannot reach: the variance outside the principal components.

Letters: C channels, k those that the map starts from.
"""

import torch
from torch import Tensor

ROUND_OFF = 1e-7
"""A component below this share of the largest is round-off of float32, and none."""


def unexplained_variance(covariance: Tensor, channels: int, measured: Tensor | None = None) -> Tensor:
    """Variance that lies outside the `channels` largest principal components, summed over channels: scalar.

    No linear map from so many channels comes nearer to the tokens than these components do, in squared error
    a token (Eckart and Young, 1936). Covariances [C, C], float64: the components are those of the first, and
    `measured` says of which tokens the variance is, where they are others. In numpy:

        values, vectors = np.linalg.eigh(covariance)  # ascending
        outside = vectors[:, : max(C - channels, 0)]
        np.trace(outside.T @ measured @ outside)

    Directions in which the first does not vary are no components of it.
    """
    values, vectors = torch.linalg.eigh(covariance)  # ascending
    count = len(values)
    absent = int((values <= count * ROUND_OFF * values[-1]).sum())
    outside = vectors[:, : max(count - channels, absent)]
    return torch.einsum("ij,ik,kj->", outside, covariance if measured is None else measured, outside)
