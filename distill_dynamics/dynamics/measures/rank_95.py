"""Rank at 95 % energy: how many principal components a block needs. Letters: C channels."""

from torch import Tensor


def rank_95(eigenvalues: Tensor) -> Tensor:
    """Eigenvalues [..., C] of the covariance of the tokens → [...], a whole number from 1 to C.

    The fewest principal components that hold 95 % of the variance, Σ_{i ≤ r} λ_i ≥ 0.95 Σλ. In numpy:

        values = np.sort(np.linalg.eigvalsh(np.cov(tokens.T)))[::-1]
        rank = np.searchsorted(values.cumsum() / values.sum(), 0.95) + 1

    T tokens span T - 1 directions at most: of few it is too low. NaN where nothing varies.
    """
    values = eigenvalues.clamp(min=0).sort(-1, descending=True).values
    share = values.cumsum(-1) / values.sum(-1, keepdim=True)
    rank = 1 + (share < 0.95).sum(-1)
    return rank.to(values).where(values.sum(-1) > 0, values.new_tensor(float("nan")))
