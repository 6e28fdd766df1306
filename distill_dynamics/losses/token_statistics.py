"""Mean and covariance of a teacher's tokens, for losses that fit something to them."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor


def token_statistics(batches: Iterable[Mapping[str, Tensor]]) -> tuple[Tensor, Tensor]:
    """Mean [C] and covariance [C, C] of the positions of all "teacher_map" [B, C, H, W], in float64.

    Added up without cancellation (Chan et al., 1979). `ValueError` where there is no map,
    and where nothing varies.
    """
    count, mean, scatter = 0, torch.zeros(()), torch.zeros(())
    for batch in batches:
        tokens = batch["teacher_map"].movedim(1, -1).flatten(0, 2).double()
        own = tokens.mean(0)
        mean, scatter = (x.to(tokens) for x in (mean, scatter))
        step, total = own - mean, count + len(tokens)
        scatter = scatter + (tokens - own).T @ (tokens - own)
        scatter = scatter + torch.outer(step, step) * (count * len(tokens) / total)
        mean, count = mean + step * (len(tokens) / total), total
    if not count:
        raise ValueError("there is no teacher's map to fit to")
    if not scatter.diagonal().sum() > 0:
        raise ValueError("the teacher's map is the same everywhere: there is nothing to fit to")
    return mean, scatter / count
