"""Numbers of tables/ as the text has them, and checks that hold a sentence to what a table says."""

import math
import operator
from dataclasses import dataclass
from typing import Any

from panels import table


class Cell(float):
    """A number of a table, written as text has it: − and not -, a dash where it is not known.

    As "size .2f" it has no sign. As "is 5", "over 0.05" or "under 0.05" it is empty, and an error unless it
    is so.
    """

    def __format__(self, spec: str) -> str:
        how, _, limit = spec.partition(" ")
        if how == "size":
            return format(Cell(abs(self)), limit)
        if how in _CHECKS:
            if not _CHECKS[how](self, float(limit)):
                raise ValueError(f"a sentence has {self:g} {spec}")
            return ""
        return super().__format__(spec).replace("-", "−") if math.isfinite(self) else "–"


_CHECKS = {"is": operator.eq, "over": operator.gt, "under": operator.lt}


@dataclass(frozen=True)
class Interval:
    """A mean with its interval: "+0.31 (+0.10 to +0.52)"; an interval that is not known is left out.

    As "above", "below" or "around" it is empty, and an error unless all of it is above or below 0, or 0 is
    in it; likewise as "excludes 0.1" and "includes 0.1". A sentence that says so in words would otherwise
    outlive its numbers. As "above .2f" or "below .2f" it is checked likewise, and has no signs.
    """

    mean: Cell
    low: Cell
    high: Cell

    def __format__(self, spec: str) -> str:
        if spec in ("above", "below", "around"):
            found = "above" if self.low > 0 else "below" if self.high < 0 else "around"
            if found != spec or not math.isfinite(self.low):
                raise ValueError(f"a sentence has {self:+.3f} {spec} 0")
            return ""
        how, _, value = spec.partition(" ")
        if how in ("above", "below"):
            format(self, how)
            near, far = sorted((abs(self.low), abs(self.high)))
            return format(Interval(Cell(abs(self.mean)), Cell(near), Cell(far)), value)
        if how in ("excludes", "includes"):
            if (self.low <= float(value) <= self.high) != (how == "includes"):
                raise ValueError(f"a sentence has ({self.low:+.3f} to {self.high:+.3f}) {spec}")
            return ""
        span = f" ({self.low:{spec}} to {self.high:{spec}})" if math.isfinite(self.low) else ""
        return f"{self.mean:{spec}}{span}"


Line = dict[str, Any]
"""Of a table by column: Cells and words, and each Interval by what its three columns have in common."""


class Lines(dict[str, Line]):
    """A table by entry and column."""

    def __missing__(self, name: str) -> Line:
        raise KeyError(f"no entry {name!r}; there are {', '.join(self) or 'none'}")


def cells(name: str) -> Lines:
    """A table's cells, numbers as numbers."""
    found = Lines()
    for entry, columns in table(name).items():
        line: Line = {column: _cell(text) for column, text in columns.items()}
        for column in [column for column in line if column.endswith("_mean")]:
            what = column.removesuffix("_mean")
            if isinstance(line.get(f"{what}_low"), Cell):
                line[what] = Interval(line[column], line[f"{what}_low"], line[f"{what}_high"])
        found[entry] = line
    return found


def _cell(text: str) -> Cell | str:
    try:
        return Cell(text or "nan")
    except ValueError:
        return text
