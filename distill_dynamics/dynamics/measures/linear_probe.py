"""A linear probe: multinomial logistic regression on frozen features, until it has converged.

Letters: M images of the bank, N queries, D features, K classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

PENALTY = 0.01
_MOST_STEPS = 1000


def linear_predictions(
    bank: Tensor, bank_targets: Tensor, queries: Tensor, penalty: float = PENALTY
) -> Tensor:
    """Classes [N] of queries [N, D] by a regression on a bank [M, D] with targets [M].

    Features are standardised by the bank's mean and standard deviation (one that does not vary becomes 0).
    W [D, K] and b [K] minimise mean cross-entropy(x W + b, target) + penalty/2 · Σ W², b free: what
    scikit-learn's StandardScaler and LogisticRegression(C=1 / (penalty · M)) minimise. There is one minimum:
    nothing is drawn, and no rate is to be chosen.

    DINO's linear probe (facebookresearch/dino, eval_linear.py) is another one: SGD for 100 epochs on all
    training images, which are augmented, without a penalty. It needs hours, and its figures are higher.

    Computed in float64 by L-BFGS, until no entry of the gradient is above 1e-5, in coordinates in which the
    features are uncorrelated: the same minimum in fewer steps.
    """
    bank, queries = bank.double(), queries.double()
    std, mean = torch.std_mean(bank, dim=0, correction=0)
    std = torch.where(std > 1e-9 * mean.abs(), std, torch.inf)
    weights, bias = fitted((bank - mean) / std, bank_targets, penalty)
    return ((queries - mean) / std @ weights + bias).argmax(1)


def fitted(x: Tensor, targets: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """W [D, K] and b [K] for standardised features [M, D] in float64."""
    spread, axes = torch.linalg.eigh(x.T @ x / len(x))
    spread = spread.clamp(min=0) + penalty
    change = axes / spread.sqrt()  # W = change · V, and Σ W² = Σ V² / spread
    shrink = torch.cat([penalty / spread, spread.new_zeros(1)]).unsqueeze(1)  # the last is of b
    shown = torch.cat([x @ change, x.new_ones(len(x), 1)], 1)
    truth = F.one_hot(targets).to(x)
    v = x.new_zeros(shown.shape[1], truth.shape[1])
    search = torch.optim.LBFGS(
        [v], max_iter=_MOST_STEPS, tolerance_grad=1e-5, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        # The gradient by hand: validation runs in inference mode, which knows of none.
        guesses = (shown @ v).log_softmax(1)
        v.grad = shown.T @ (guesses.exp() - truth) / len(x) + shrink * v
        return (shrink * v.square()).sum() / 2 - (guesses * truth).sum() / len(x)

    search.step(loss)
    return change @ v[:-1], v[-1]
