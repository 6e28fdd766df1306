"""Mean and covariance of a teacher's tokens, for losses that fit something to them."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor


class TokenStatistics:
    """Mean and covariance of positions of maps, or of other vectors, without cancellation (Chan, 1979)."""

    def __init__(self) -> None:
        self.count, self.mean, self.scatter = 0, torch.zeros(()), torch.zeros(())

    def add(self, x: Tensor) -> None:
        """Take in a map [B, C, H, W], or vectors [..., C]."""
        x = x.cpu() if x.device.type == "mps" else x  # which has no float64
        tokens = (x.movedim(1, -1) if x.ndim == 4 else x).flatten(0, -2).double()
        own = tokens.mean(0)
        mean, scatter = (x.to(tokens) for x in (self.mean, self.scatter))
        step, total = own - mean, self.count + len(tokens)
        scatter = scatter + (tokens - own).T @ (tokens - own)
        self.scatter = scatter + torch.outer(step, step) * (self.count * len(tokens) / total)
        self.mean, self.count = mean + step * (len(tokens) / total), total

    def result(self) -> tuple[Tensor, Tensor]:
        """Mean [C] and covariance [C, C], float64.

        `ValueError` where there is none, where some are not finite, and where nothing varies.
        """
        if not self.count:
            raise ValueError("there is nothing of the teacher to fit to")
        if not self.scatter.isfinite().all():
            raise ValueError("the teacher's features are not all finite: there is nothing to fit to")
        if not self.scatter.diagonal().sum() > 0:
            raise ValueError("the teacher's features are the same everywhere: there is nothing to fit to")
        return self.mean, self.scatter / self.count


def token_statistics(batches: Iterable[Mapping[str, Tensor]]) -> tuple[Tensor, Tensor]:
    """`TokenStatistics.result` of all "teacher_map" [B, C, H, W]."""
    statistics = TokenStatistics()
    for batch in batches:
        statistics.add(batch["teacher_map"])
    return statistics.result()
