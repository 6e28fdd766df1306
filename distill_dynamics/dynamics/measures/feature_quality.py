"""How good features are where training has no labels: kNN, linear probe, effective rank.

Letters: N images, D features, K classes.
"""

import math

import torch
from torch import Tensor

from distill_dynamics.dynamics.measures.effective_rank import effective_rank
from distill_dynamics.dynamics.measures.knn import knn_predictions
from distill_dynamics.dynamics.measures.linear_probe import linear_predictions

QUALITY = ("knn1", "linear1", "effective_rank")
"""Names of what is measured: kNN and linear-probe top-1 in percent, and a number of directions."""


def halves(targets: Tensor) -> Tensor:
    """Which images [N] are of the bank, by their targets [N] alone; the others are queries.

    Of each class the first half in order, one more where the number is odd. Neighbours in the order, such as
    photographs of one burst, so mostly lie in the same half.
    """
    order = targets.argsort(stable=True)
    counts = torch.bincount(targets)
    place = torch.arange(len(targets), device=targets.device) - (counts.cumsum(0) - counts)[targets[order]]
    in_bank = torch.empty_like(targets, dtype=torch.bool)
    in_bank[order] = 2 * place < counts[targets[order]]
    return in_bank


def feature_quality(
    bank: Tensor, bank_targets: Tensor, queries: Tensor, query_targets: Tensor
) -> dict[str, float]:
    """`QUALITY` of features [., D] of two sets of images, with the targets of each.

    Queries are classified by the bank: `knn_predictions` and `linear_predictions` say how; the top-1 is in
    percent of the queries. The effective rank is that of the covariance of all features, over images
    (`effective_rank`): from 1, where one direction is used, to D. RankMe (Garrido et al. 2023, arXiv
    2210.02885) takes singular values in the place of eigenvalues and does not subtract the mean: its numbers
    are others.

    All NaN where a feature is not finite, one of the sets is empty, or all images are of one class.
    """
    features = torch.cat([bank, queries])
    classes = torch.cat([bank_targets, query_targets]).unique()
    if not (len(bank) and len(queries) and len(classes) > 1 and features.isfinite().all()):
        return dict.fromkeys(QUALITY, math.nan)
    near = knn_predictions(bank, bank_targets, queries)
    linear = linear_predictions(bank, bank_targets, queries)
    covariance = torch.atleast_2d(torch.cov(features.double().T))  # of one feature torch gives a number
    rank = effective_rank(torch.linalg.eigvalsh(covariance))
    top1 = [100.0 * (found == query_targets).double().mean().item() for found in (near, linear)]
    return dict(zip(QUALITY, [*top1, rank.item()], strict=True))
