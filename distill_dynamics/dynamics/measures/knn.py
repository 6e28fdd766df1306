"""Weighted k-nearest-neighbour classification of frozen features, as DINO measures them.

Letters: M images of the bank, N queries, D features, K classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

NEIGHBOURS, TEMPERATURE = 20, 0.07
_AT_ONCE = 2**24  # similarities held at a time: 128 MiB


def knn_predictions(
    bank: Tensor, bank_targets: Tensor, queries: Tensor, k: int = NEIGHBOURS, temperature: float = TEMPERATURE
) -> Tensor:
    """Classes [N] of queries [N, D] by their neighbours in a bank [M, D] with targets [M].

    Each of the k nearest by cosine similarity s votes for its class with exp(s / temperature), and the class
    of most votes wins (Caron et al. 2021, arXiv 2104.14294; `knn_classifier` in the repository
    facebookresearch/dino, eval_knn.py: k 20, temperature 0.07). A bank of fewer than k images votes as a
    whole. Of equally near ones the first in the bank is taken, of equal votes the smallest class.

        s = cosine(bank, query); near = argsort(-s, stable)[:k]
        votes[c] = sum(exp(s[near] / temperature)[bank_targets[near] == c])

    Computed in float64, as cosines of features that hardly vary differ by less than float32 tells; so many
    queries at a time that their similarities take 128 MiB.
    """
    # torch's default would take lengths below 1e-12 for 1e-12.
    bank, queries = (F.normalize(x.double(), dim=1, eps=1e-100) for x in (bank, queries))
    k = min(k, len(bank))
    classes = int(bank_targets.max()) + 1
    found = []
    for some in queries.split(max(1, _AT_ONCE // max(len(bank), k * classes))):
        near, places = _nearest(some @ bank.T, k)
        voted = F.one_hot(bank_targets[places], classes).to(near.dtype)  # no scatter: it adds in any order
        votes = (near / temperature).exp().unsqueeze(1) @ voted
        found.append(votes.squeeze(1).argmax(1))
    return torch.cat(found)


def _nearest(similarities: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row, and where they are: of equals at the end, those that come first."""
    near, places = similarities.topk(k)
    last = near[:, -1:]
    # topk may have any of several that equal the last.
    cut = (similarities == last).sum(1) > (near == last).sum(1)
    if cut.any():
        in_order = similarities[cut].sort(dim=1, descending=True, stable=True)
        near[cut], places[cut] = (x[:, :k] for x in in_order)
    return near, places
