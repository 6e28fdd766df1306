"""README.md from README.template.md: every number in it is a cell of tables/, filled in here.

    python notebooks/study/write_up.py

In the template `{accuracy[softkd][last_mean]:.2f}` is a cell, `{accuracy[none][last_difference]:+.2f}` a mean
with its interval, of three cells, and `{shown[accuracy]}` a table.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from figures import LABELS, table
from tables import TABLES_MADE

HERE = Path(__file__).parent


class Cell(float):
    """A number of a table, written as text has it: − and not -, a dash where it is not known."""

    def __format__(self, spec: str) -> str:
        return super().__format__(spec).replace("-", "−") if math.isfinite(self) else "–"


@dataclass(frozen=True)
class Interval:
    """A mean with its interval: "+0.31 (+0.10 to +0.52)"; an interval that is not known is left out."""

    mean: Cell
    low: Cell
    high: Cell

    def __format__(self, spec: str) -> str:
        span = f" ({self.low:{spec}} to {self.high:{spec}})" if math.isfinite(self.low) else ""
        return f"{self.mean:{spec}}{span}"


UNKNOWN = Cell("nan")
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


def accuracy(found: Lines) -> str:
    """The paper's Table 1 in small."""
    lines = []
    for row, e in found.items():
        shown = [LABELS[row], f"{e['seeds']:.0f}", _spread(e, "last")]
        if isinstance(e.get("baseline"), str):
            shown += [LABELS[str(e["baseline"])], _difference(e, "last"), f"{e.get('q', UNKNOWN):.3f}"]
        else:
            shown += ["", "", ""]
        lines.append([*shown, _spread(e, "best"), _difference(e, "best")])
    heads = ["", "seeds", "last epoch", "beside", "points", "q", "best epoch", "points"]
    return markdown(heads, lines)


def contrasts(found: Lines) -> str:
    """Differences of rows and of differences."""
    lines = [
        [name, f"{e['seeds']:.0f}", f"{e['last']:+.2f}", f"{e.get('q', UNKNOWN):.3f}"]
        for name, e in found.items()
    ]
    return markdown(["", "seeds", "points", "q"], lines)


def shapes(found: Lines) -> str:
    """Whose curve is a U at the end."""
    last = {str(e["row"]): e["epoch"] for e in found.values()}
    lines = []
    for row, epoch in last.items():
        e, free = found[f"{row} global {epoch:.0f}"], found[f"{row} scale-free {epoch:.0f}"]
        u = f"{e['u']:.0f} of {e['runs']:.0f}"
        span = f"{e['lowest']:.0f} ({e['lowest_min']:.0f} to {e['lowest_max']:.0f})"
        ends = [f"{line[side]:.3f}" for line in (e, free) for side in ("fall_mean", "rise_mean")]
        lines.append([LABELS[row], u, span, *ends])
    heads = ["", "a U", "lowest block (of single runs)", "fall", "rise", "scale-free: fall", "rise"]
    return markdown(heads, lines)


def evolution(found: Lines) -> str:
    """What becomes of the ends' entropy over the epochs, less the baseline's."""
    names = ("change", "rebound", "first_change")
    lines = [
        [LABELS[row], *(_difference(e, name) for name in names)]
        for row, e in found.items()
        if _difference(e, "change")
    ]
    return markdown(["", "last block's change", "its rebound", "first block's change"], lines)


def _spread(entry: Line, what: str) -> str:
    sd = entry[f"{what}_sd"]
    return f"{entry[f'{what}_mean']:.2f}" + (f" ± {sd:.2f}" if math.isfinite(sd) else "")


def _difference(entry: Line, what: str) -> str:
    difference = entry.get(f"{what}_difference")
    return f"{difference:+.2f}" if difference and math.isfinite(difference.mean) else ""


def markdown(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table, numbers to the right."""
    rule = ["---", *["---:"] * (len(heads) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (heads, rule, *lines))


SHOWN: dict[str, Callable[[Lines], str]] = {
    made.__name__: made for made in (accuracy, contrasts, shapes, evolution)
}


def filled(template: str) -> str:
    """The text with its cells."""
    found = {made.__name__: cells(made.__name__) for made in TABLES_MADE}
    shown = {name: show(found[name]) for name, show in SHOWN.items()}
    return template.format(**found, shown=shown)


if __name__ == "__main__":
    text = filled((HERE / "README.template.md").read_text(encoding="utf-8"))
    (HERE / "README.md").write_text(text, encoding="utf-8")
