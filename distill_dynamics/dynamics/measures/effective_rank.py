"""Effective rank (Roy & Vetterli, 2007): how many directions the tokens of a block really use.

Letters: C channels.
"""

import torch
from torch import Tensor


def effective_rank(eigenvalues: Tensor) -> Tensor:
    """Eigenvalues [..., C] of the covariance of the tokens → [...], between 1 and C.

    The exponential of the Shannon entropy of the normalised eigenvalues, p = λ / Σλ: exp(-Σ p ln p). C where
    all directions vary alike, k where k do so and the others do not at all. In numpy:

        tokens = x.transpose(0, 2, 3, 1).reshape(-1, C)
        p = np.linalg.eigvalsh(np.cov(tokens.T)); p = p[p > 0] / p[p > 0].sum()
        rank = np.exp(-(p * np.log(p)).sum())

    Independent of scale, rotation and offset of the channels, unlike the entropy. Eigenvalues below 0, which
    are round-off, count as 0. NaN where nothing varies.
    """
    values = eigenvalues.clamp(min=0)
    return torch.special.entr(values / values.sum(-1, keepdim=True)).sum(-1).exp()
