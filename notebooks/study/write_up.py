"""README.md from README.template.md: every number in it is a cell of tables/, filled in here.

The table at the head of the project's README.md is made here too, and what each row's YAML expects.

    python notebooks/study/write_up.py

In the template `{accuracy[softkd][last_mean]:.2f}` is a cell, `{accuracy[none][last_difference]:+.2f}` a mean
with its interval, of three cells, `{shown[accuracy]}` a table. Of `{accuracy[none][last_difference]:below}`
and `{early[top-1 1][q]:over 0.05}` nothing is seen: they hold a sentence to what the table says.
"""

import math
import operator
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from figures import CURVES, FOLLOWED, HEADLINE, LABELS, RANGES, table
from rows import ROWS
from tables import TABLES_MADE

HERE = Path(__file__).parent
README = HERE.parents[1] / "README.md"
CONFIGS = HERE.parents[1] / "configs" / "fashion_mnist"
BEGIN, END = "<!-- by notebooks/study/write_up.py -->", "<!-- to here -->"
"""What stands before and after the table in the project's README."""


class Cell(float):
    """A number of a table, written as text has it: − and not -, a dash where it is not known.

    As "is 5", "over 0.05" or "under 0.05" it is empty, and an error unless it is.
    """

    def __format__(self, spec: str) -> str:
        how, _, limit = spec.partition(" ")
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
    in it: a sentence that says so in words would otherwise outlive its numbers.
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
        shown = [LABELS[row], _percent(e["term"]), f"{e['seeds']:.0f}", _spread(e, "last")]
        if isinstance(e.get("baseline"), str):
            shown += [LABELS[str(e["baseline"])], _interval(e, "last_difference"), _known(e["paper"], "+.2f")]
            q = e.get("q", UNKNOWN)
            shown += ["< 0.001" if q < 0.001 else _known(q, ".3f")]
        else:
            shown += [""] * 4
        lines.append(shown)
    return markdown(["", "term (%)", "seeds", "top-1 (%)", "minus", "points", "paper's", "q"], lines)


def headline(found: Lines) -> str:
    """The rows of the figure `headline`, for the project's README."""
    chosen = {row: e for row, e in found.items() if row in ("softkd", *HEADLINE)}
    lines = [
        [LABELS[row], f"{e['seeds']:.0f}", _spread(e, "last"), _interval(e, "last_difference"),
         _known(e["paper"], "+.2f")]
        for row, e in chosen.items()
    ]  # fmt: skip
    heads = ["", "seeds", "top-1 (%)", "minus SoftKD's of as many epochs", "the paper's, ImageNet"]
    return markdown(heads, lines)


def contrasts(found: Lines) -> str:
    """Differences of rows and of differences."""
    lines = [
        [name, f"{e['seeds']:.0f}", _interval(e, "points"), _known(e["paper"], "+.2f")]
        for name, e in found.items()
    ]
    return markdown(["", "seeds", "points", "paper's"], lines)


SHAPES_SHOWN = (*CURVES, "none", "none_std01", "projectorkd_l1", "spectralkd_l1_resnet")
RANGES_SHOWN = ("teacher_cait24", "softkd", "none_std01", "spectralkd_f1")
"""The others are in the tables alone."""


def shapes(found: Lines) -> str:
    """Whose curve is a U, under the paper's range."""
    chosen: dict[str, list[Line]] = {}
    for e in found.values():
        if e["range"] == "global" and e["row"] in SHAPES_SHOWN:
            chosen.setdefault(str(e["row"]), []).append(e)
    lines = []
    for row, epochs in chosen.items():
        e = max(epochs, key=lambda e: e["epoch"])
        ever = f"{e['ever_u']:.0f} of {e['ever']:.0f}"
        lowest = f"{e['lowest']:.0f} ({e['lowest_min']:.0f} to {e['lowest_max']:.0f})"
        arms = [_interval(e, name, ".2f") for name in ("fall", "rise")]
        lines.append([LABELS[row], f"{e['u']:.0f} of {e['runs']:.0f}", ever, lowest, *arms])
    heads = [
        "",
        "a U at the end",
        "over runs and epochs",
        "lowest block (of single runs)",
        "fall (bits)",
        "rise (bits)",
    ]
    return markdown(heads, lines)


def ranges(found: Lines) -> str:
    """What is left of the curves where the scale is divided out."""
    lines = [
        [
            LABELS[str(e["row"])],
            RANGES[str(e["range"])],
            _interval(e, "fall", ".2f"),
            _interval(e, "rise", ".2f"),
            f"{e['r2_mean']:.2f}",
            f"{e['slope_mean']:.2f}",
        ]
        for e in found.values()
        if e["row"] in RANGES_SHOWN
    ]
    return markdown(["", "bins with", "fall (bits)", "rise (bits)", "R²", "bits a doubling"], lines)


def evolution(found: Lines) -> str:
    """What becomes of the ends' entropy over the epochs, and minus the baseline's."""
    names = ("last", "last_own", "all", "last_change", "first_change", "first_change_difference")
    lines = [[LABELS[row], *(_interval(found[row], name) for name in names)] for row in ("softkd", *FOLLOWED)]
    heads = [
        "",
        "last block, early",
        "the same, its own range",
        "all blocks, early",
        "change of the last block",
        "change of the first",
        "the same, minus SoftKD's",
    ]
    return markdown(heads, lines)


def _spread(entry: Line, what: str) -> str:
    sd = entry[f"{what}_sd"]
    return f"{entry[f'{what}_mean']:.2f}" + (f" ± {sd:.2f}" if math.isfinite(sd) else "")


def _interval(entry: Line, what: str, spec: str = "+.2f") -> str:
    found = entry.get(what)
    return f"{found:{spec}}" if isinstance(found, Interval) and math.isfinite(found.mean) else ""


def _known(cell: Cell, spec: str) -> str:
    return f"{cell:{spec}}" if math.isfinite(cell) else ""


def _percent(share: Cell) -> str:
    return _known(Cell(100 * share), ".0f")


def markdown(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table, numbers to the right."""
    rule = ["---", *["---:"] * (len(heads) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (heads, rule, *lines))


SHOWN: dict[str, Callable[[Lines], str]] = {
    made.__name__: made for made in (accuracy, contrasts, shapes, ranges, evolution)
}


def filled(template: str) -> str:
    """The text with its cells."""
    found = {made.__name__: cells(made.__name__) for made in TABLES_MADE}
    shown = {name: show(found[name]) for name, show in SHOWN.items()}
    return template.format(**found, shown=shown)


def with_headline(readme: str) -> str:
    """The project's README with its table as it is now."""
    before, rest = readme.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{headline(cells('accuracy'))}\n{END}{after}"


def configs() -> Iterator[tuple[Path, str]]:
    """The rows' YAMLs, each with what it came to."""
    for row, entry in cells("accuracy").items():
        if ROWS[row].config is None:
            path = CONFIGS / f"{row}.yaml"
            yield path, with_expected(path.read_text(encoding="utf-8"), entry)


def with_expected(config: str, entry: Line) -> str:
    """A row's YAML with its line "# Expected" as its line of `accuracy` has it."""
    came_to = f"{_spread(entry, 'last')} % top-1, {entry['seeds']:.0f} seeds"
    if isinstance(entry.get("baseline"), str):
        came_to += f"; {_interval(entry, 'last_difference')} points from {entry['baseline']}.yaml's"
    line = f"# Expected    {came_to} (notebooks/study/README.md)"
    text, lines = re.subn(r"^# Expected .*$", line, config, count=1, flags=re.MULTILINE)
    if not lines:
        raise ValueError("there is no line '# Expected' to fill")
    return text


def main() -> None:
    """Write all three."""
    text = filled((HERE / "README.template.md").read_text(encoding="utf-8"))
    (HERE / "README.md").write_text(text, encoding="utf-8")
    readme = with_headline(README.read_text(encoding="utf-8"))
    README.write_text(readme, encoding="utf-8")
    for path, config in configs():
        path.write_text(config, encoding="utf-8")


if __name__ == "__main__":
    main()
