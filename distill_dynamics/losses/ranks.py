"""The global batch under DDP: what the other ranks hold, with gradients."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_alone = ContextVar("alone", default=False)


@contextmanager
def one_rank() -> Iterator[None]:
    """Within, losses are of this rank's images alone: where every rank shows them the same ones."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


def several_ranks() -> bool:
    """Whether there are other ranks to ask."""
    return not _alone.get() and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


class GatherRanks(torch.autograd.Function):
    """Every rank's tensor, of one shape, as [ranks, *shape]; its gradient is the sum over all ranks'.

    That is of the sum of all ranks' losses, so that DDP's mean over ranks is the gradient of their mean.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Gather; every rank must call it, and so must every rank's backward pass."""
        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x)
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Sum the gradients of all ranks."""
        # A copy: autograd may still need the gradient it hands in, and all_reduce writes in place.
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient[dist.get_rank()]


def global_batch(x: Tensor) -> Tensor:
    """[B, ...] of each rank, equally many → [ranks · B, ...]; `x` itself where there is one rank."""
    return GatherRanks.apply(x).flatten(0, 1) if several_ranks() else x


def summed_over_ranks(x: Tensor) -> Tensor:
    """The sum of every rank's tensor, of one shape; `x` itself where there is one rank."""
    return GatherRanks.apply(x).sum(0) if several_ranks() else x
