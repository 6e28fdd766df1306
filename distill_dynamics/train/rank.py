"""Which process this is, before the ranks have met."""

from lightning.pytorch.utilities.rank_zero import rank_zero_only


def is_first_rank() -> bool:
    """Known from the launcher's environment, before the ranks have met."""
    return getattr(rank_zero_only, "rank", 0) == 0
