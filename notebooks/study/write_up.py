"""README.md from README.template.md: every number in it is a cell of tables/, filled in here.

The table at the head of the project's README.md is made here too, and what each row's YAML expects.

    python notebooks/study/write_up.py

In the template `{accuracy[softkd][last_mean]:.2f}` is a cell, `{accuracy[none][last_difference]:+.2f}` a mean
with its interval, of three cells, `{shown[accuracy]}` a table. Of `{accuracy[none][last_difference]:below}`,
`{accuracy[none][last_difference]:excludes 0.1}` and `{early[top-1 1][q]:over 0.05}` nothing is seen: they
hold a sentence to what the table says.
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from cells import Cell, Interval, Line, Lines, cells
from panels import LABELS, RANGES
from rows import ROWS
from tables import TABLES_MADE

HERE = Path(__file__).parent
README = HERE.parents[1] / "README.md"
CONFIGS = HERE.parents[1] / "configs" / "fashion_mnist"
BEGIN, END = "<!-- by notebooks/study/write_up.py -->", "<!-- to here -->"
"""What stands before and after the table in the project's README."""


HEADLINE = (
    "none",
    "softkd",
    "softkd_60",
    "spectralkd_l1",
    "spectralkd_l1_60",
    "projectorkd_l1",
    "projectorkd_l1_frozen",
)
SHAPES_SHOWN = (
    "teacher_cait24",
    "teacher_cait24_std035",
    "none",
    "none_std01",
    "softkd",
    "softkd_60",
    "spectralkd_f1",
    "spectralkd_f1_l1",
    "spectralkd_l1",
    "spectralkd_l1_60",
    "projectorkd_l1",
    "spectralkd_l1_resnet",
)
RANGES_SHOWN = ("teacher_cait24", "teacher_cait24_std035", "none", "none_std01", "softkd", "spectralkd_l1")
EVOLUTION_SHOWN = (
    "spectralkd_l1",
    "spectralkd_l1_long",
    "spectralkd_l1_60",
    "spectralkd_f1",
    "spectralkd_f1_l1",
    "projectorkd_l1",
    "softkd",
    "softkd_60",
)
"""Rows of the README's and the folded tables; the others are in tables/ alone."""


def accuracy(found: Lines) -> str:
    """The paper's Table 1 in small; bold: larger than the pooled error."""
    lines = []
    for row, e in found.items():
        name = LABELS[row] + (" †" if ROWS[row].extended else "")
        shown = [name, f"{e['seeds']:.0f}", _spread(e, "last"), *[""] * 6]
        if isinstance(e.get("baseline"), str):
            points, loss = _sure(e, "last", 1, "+.2f"), _sure(e, "loss", 1000, "+.1f")
            kd = _known(Cell(np.round(e["kd_mean"]) + 0.0), "+.0f")
            shown[3:] = [points, _known(e["paper"], "+.2f"), _p(e["holm"]), _p(e["q"]), loss, kd]
        lines.append(shown)
    heads = ["", "seeds", "top-1 (%)", "points", "paper's", "Holm", "q", "test loss (10⁻³)", "KD loss (%)"]
    return markdown(heads, lines)


def _sure(entry: Line, what: str, scale: float, spec: str) -> str:
    parts = (entry[f"{what}_difference_{part}"] for part in ("mean", "low", "high"))
    text = f"{Interval(*(Cell(scale * part) for part in parts)):{spec}}"
    return f"**{text}**" if entry[f"{what}_sure"] == 1 else text


def _p(cell: Cell) -> str:
    return "< 0.001" if cell < 0.001 else _known(cell, ".3f")


def headline(found: Lines) -> str:
    """The main rows, for the project's README."""
    chosen = {row: e for row, e in found.items() if row in HEADLINE}
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


def shapes(found: Lines) -> str:
    """Whose curve is a U, under the paper's range."""
    chosen: dict[str, list[Line]] = {row: [] for row in SHAPES_SHOWN}
    for e in found.values():
        if e["range"] == "global" and e["row"] in chosen:
            chosen[str(e["row"])].append(e)
    lines = []
    for row, epochs in chosen.items():
        if not epochs:
            continue
        e = max(epochs, key=lambda e: e["epoch"])
        ever = f"{e['ever_u']:.0f} of {e['ever']:.0f}"
        lowest = f"{e['lowest']:.0f} ({e['lowest_min']:.0f} to {e['lowest_max']:.0f})"
        arms = [_interval(e, name, "+.2f") for name in ("fall", "rise")]
        us = [f"{e[name]:.0f} of {e['runs']:.0f}" for name in ("u", "u_of_any_depth")]
        lines.append([LABELS[row], *us, ever, lowest, *arms])
    heads = ["", "a U at the end", "the same, of any depth", "over runs and epochs", "lowest block (of runs)"]
    return markdown([*heads, "fall (bits)", "rise (bits)"], lines)


def ranges(found: Lines) -> str:
    """What is left of the curves where the scale is divided out."""
    lines = [
        [
            LABELS[str(e["row"])],
            RANGES[str(e["range"])],
            _interval(e, "fall"),
            _interval(e, "rise"),
            f"{e['r2_mean']:.2f}",
            f"{e['slope_mean']:.2f}",
        ]
        for e in found.values()
        if e["row"] in RANGES_SHOWN and e["range"] in RANGES
    ]
    return markdown(["", "bins with", "fall (bits)", "rise (bits)", "R²", "bits a doubling"], lines)


def evolution(found: Lines) -> str:
    """What becomes of the last and the first block over the epochs."""
    names = ("last", "last_own", "last_scale", "last_change", "last_scale_change", "others_scale_change")
    lines = [
        [
            f"{LABELS[row]} ({e['early_from']:.0f} to {e['early_to']:.0f})",
            *(_interval(e, n) for n in names),
        ]
        for row in EVOLUTION_SHOWN
        for e in [found[row]]
    ]
    heads = ["row (early epochs)", "entropy, early", "own range", "magnitude, early", "entropy, later change"]
    return markdown([*heads, "magnitude, later change", "other blocks'"], lines)


def _spread(entry: Line, what: str) -> str:
    sd = entry[f"{what}_sd"]
    return f"{entry[f'{what}_mean']:.2f}" + (f" ± {sd:.2f}" if math.isfinite(sd) else "")


def _interval(entry: Line, what: str, spec: str = "+.2f") -> str:
    found = entry.get(what)
    return f"{found:{spec}}" if isinstance(found, Interval) and math.isfinite(found.mean) else ""


def _known(cell: Cell, spec: str) -> str:
    return f"{cell:{spec}}" if math.isfinite(cell) else ""


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
