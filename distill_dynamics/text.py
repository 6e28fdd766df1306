"""Numbers and lists as a reader sees them."""

import math
from collections.abc import Sequence

NOTHING = "–"
"""In the place of what is not known."""


def number(value: float, digits: int) -> str:
    """ "0.50"; a dash for NaN, and no sign for what rounds to 0."""
    return NOTHING if math.isnan(value) else f"{value:z.{digits}f}"


def signed(value: float, digits: int = 2) -> str:
    """ "+0.50" and "-0.50", "0.00" for what rounds to 0; a dash for NaN."""
    text = number(value, digits)
    return f"+{text}" if value > 0 and float(text) else text


def with_error(value: str, error: float, digits: int) -> str:
    """ "3 ± 0.5"; without ± where the error is unknown, or nothing varied."""
    return f"{value} ± {error:.{digits}f}" if error > 1e-12 else value


def counted(count: float | str, noun: str) -> str:
    """ "1 epoch", "2 epochs"."""
    return f"{count} {noun}" if str(count) == "1" else f"{count} {noun}s"


def listed(names: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"; of more than twelve ten and "60 more"."""
    if len(names) > 12:
        names = [*names[:10], f"{len(names) - 10} more"]
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
