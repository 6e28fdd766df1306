"""The processes that train together."""

from __future__ import annotations

from lightning.pytorch.utilities.rank_zero import rank_zero_only


def is_first_rank() -> bool:
    """Known from the launcher's environment, before the ranks have met."""
    return getattr(rank_zero_only, "rank", 0) == 0
