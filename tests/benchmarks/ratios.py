"""Timing by turns: what the benchmarks of this folder share."""

import statistics
import time
from collections.abc import Callable


def seconds(function: Callable[[], object]) -> float:
    """Wall-clock time of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def compare(rounds: list[list[float]], one: int, other: int) -> str:
    """Median and range of a ratio within rounds."""
    ratios = sorted(times[one] / times[other] for times in rounds)
    return f"{statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})"
