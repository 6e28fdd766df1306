"""One measurement shared by several processes: image i of the whole set is on rank i mod world size."""

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch.distributed as dist

from distill_dynamics.dynamics.profile import FloatArray
from distill_dynamics.errors import UserError

T = TypeVar("T")


def interleave(shares: list[FloatArray]) -> FloatArray:
    """Rows of each rank → rows in the order of the whole set: row i is on rank i mod world size."""
    rows = np.empty((sum(map(len, shares)), *shares[0].shape[1:]))
    for rank, share in enumerate(shares):
        rows[rank :: len(shares)] = share
    return rows


def on_every_rank(work: Callable[[], T], group: dist.ProcessGroup | None) -> list[T]:
    """Results of `work` on all ranks of the group, in rank order; an error on one is raised on all."""
    if group is None:
        return [work()]
    result: T | None = None
    error: Exception | None = None
    try:
        result = work()
    except Exception as caught:  # whatever it is, the other ranks wait for news of it
        error = caught
    message = None if error is None else str(error) or type(error).__name__
    reports: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(reports, (result, message, isinstance(error, UserError)), group=group)
    if error is not None:
        raise error
    for rank, (_, message, mendable) in enumerate(reports):
        if message is not None:
            raise UserError(message) if mendable else RuntimeError(f"profile_model on rank {rank}: {message}")
    return [report[0] for report in reports]
