"""Capacity floor: how much of a block a narrow student cannot hold (Eckart and Young, 1936).

Letters: C channels, k those of the student.
"""

from torch import Tensor

from distill_dynamics.losses.unexplained_variance import unexplained_variance


def capacity_floor(fitted: Tensor, measured: Tensor, channels: int) -> Tensor:
    """φ(k) = 1 - share of the variance that the k largest principal components hold: scalar, 0 to 1.

    Covariances [C, C] of the tokens of two halves of the images, each about its own mean: the components are
    found on the first and measured on the second. No linear map from k channels brings the mean squared error
    below this share of the tokens' variance. In numpy:

        components = np.linalg.eigh(fitted)[1][:, ::-1][:, :k]
        1 - np.trace(components.T @ measured @ components) / np.trace(measured)

    It does not change with rotation, order, offset or a common scale of the channels; a few channels of large
    variance can rule it. Components of few tokens fit these tokens, and hold less of others: of few images
    it is too high (the last block of a CaiT of 64 channels, 49 tokens an image, k = 32: 0.079 of 32 images,
    0.060 of 128, 0.052 of 1,000); on the half that the components are fitted to it would be too low. 0 where
    C ≤ k; NaN where nothing varies.
    """
    if len(fitted) <= channels:
        return measured.new_zeros(())
    return unexplained_variance(fitted, channels, measured) / measured.trace()
