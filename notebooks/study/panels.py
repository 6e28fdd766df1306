"""Panels that the study's figures share, drawn from tables/ alone.

A row has one colour everywhere, black is for what is of no row, and grey for the paper's early epochs.
"""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from evidence import read
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from rows import CONTROLS, ROWS, TEACHERS
from tables import TABLES

from distill_dynamics.figures.style import OKABE_ITO

Cells = dict[str, str]

LABELS = TEACHERS | CONTROLS | {name: row.label for name, row in ROWS.items()}
RANGES = {
    "global": "one range for all blocks",
    "layer": "each block's own range",
    "scaled": "blocks divided by their magnitude",
}
COLOURS = {
    "softkd": OKABE_ITO[0],
    "spectralkd_l1": OKABE_ITO[1],
    "spectralkd_f1": OKABE_ITO[5],
    "spectralkd_f1_l1": OKABE_ITO[3],
    "projectorkd_l1": OKABE_ITO[4],
    "teacher_cait24": OKABE_ITO[2],
    "teacher_cait24_std035": "#882255",
    "teacher_resnet": "#332288",
    "none": "#999933",
    "none_std01": "#AA4499",
}
"""Of rows, in every figure."""
DASHES = {"global": "-", "layer": ":", "scaled": "--"}
ZERO: dict[str, Any] = {"color": "black", "lw": 0.8}


def colour_of(row: str) -> str:
    """The same for a row and its longer trainings."""
    return COLOURS[row.removesuffix("_60").removesuffix("_long")]


def table(name: str) -> dict[str, Cells]:
    """Entries of a table by their name."""
    return {entry["name"]: entry for entry in read(TABLES / f"{name}.csv")}


def number(cells: Cells, column: str) -> float:
    """NaN where it is not known."""
    return float(cells.get(column) or "nan")


def blocks(cells: Cells, what: str = "block") -> NDArray[np.float64]:
    """[L]: the entry's values by block, NaN where there is none between others."""
    values = [(name, value) for name, value in cells.items() if name.startswith(f"{what}_")]
    depth = max((i for i, (_, value) in enumerate(values, start=1) if value), default=0)
    return np.array([float(value or "nan") for _, value in values[:depth]])


def by_epoch(name: str, **of: str) -> dict[int, Cells]:
    """Entries of a table that are of this row (and range), by epoch."""
    found = [c for c in table(name).values() if all(c[column] == value for column, value in of.items())]
    return {int(cells["epoch"]): cells for cells in found if cells["epoch"]}


def whole_numbers(axes: Axes) -> None:
    """At blocks and epochs only."""
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))


def draw_epochs(axes: Axes, row: str) -> None:
    """The row's mean curves under the paper's range: light early, dark late, untrained dotted."""
    found = by_epoch("shapes", row=row, range="global")
    for epoch, cells in found.items():
        curve = blocks(cells)
        look: dict[str, Any] = {"color": plt.cm.viridis_r(0.1 + 0.9 * epoch / max(found)), "lw": 1.2}
        if epoch == 0:
            look = {"color": "black", "ls": (0, (1, 1)), "lw": 1}
        axes.plot(range(1, len(curve) + 1), curve, **look)
    whole_numbers(axes)


def draw_ranges(axes: Axes, row: str, chosen: Sequence[str] = tuple(RANGES)) -> None:
    """The row's mean curve at the end under the ranges, ± a standard deviation over seeds."""
    for value_range in chosen:
        label = RANGES[value_range]
        cells = table("ranges").get(f"{row} {value_range}")
        if cells is None:
            continue
        curve, spread = blocks(cells), blocks(cells, "sd")
        places = range(1, len(curve) + 1)
        axes.plot(places, curve, color=COLOURS[row], ls=DASHES[value_range], label=label)
        if len(spread):
            axes.fill_between(places, curve - spread, curve + spread, color=COLOURS[row], alpha=0.15, lw=0)
    whole_numbers(axes)


def draw_course(
    axes: Axes, found: dict[int, Cells], what: str, label: str | None = None, **look: Any
) -> None:
    """A mean over the epochs, with its interval."""
    mean, low, high = (
        np.array([number(cells, f"{what}_{part}") for cells in found.values()])
        for part in ("mean", "low", "high")
    )
    axes.plot(list(found), mean, label=label, **look)
    axes.fill_between(list(found), low, high, color=look["color"], alpha=0.15, lw=0)


def draw_gains(axes: Axes) -> None:
    """What SpectralKD L 1 adds to SoftKD at each epoch of trainings of each length."""
    rows = dict.fromkeys(cells["row"] for cells in table("courses").values())
    axes.axhline(0, **ZERO)
    for row, dashes in zip(rows, ((0, (1, 1)), (0, (4, 2)), "-"), strict=False):
        found = {epoch: c for epoch, c in by_epoch("courses", row=row).items() if epoch > 1}
        gains = [number(cells, "gain_mean") for cells in found.values()]
        axes.plot(list(found), gains, color=colour_of(row), ls=dashes, lw=1.4, label=f"{max(found)} epochs")
        mean, low, high = (number(found[max(found)], f"gain_{part}") for part in ("mean", "low", "high"))
        axes.errorbar(max(found), mean, [[mean - low], [high - mean]], color=colour_of(row), fmt="o", ms=4)
    whole_numbers(axes)


def draw_differences(axes: Axes, rows: Sequence[Cells], what: str, paper: bool) -> None:
    """Paired intervals from top to bottom; filled beyond the pooled error; diamonds for the paper."""
    axes.axvline(0, **ZERO)
    for place, cells in enumerate(rows):
        mean, low, high = (number(cells, f"{what}_difference_{part}") for part in ("mean", "low", "high"))
        axes.plot([low, high], [place, place], color="black", lw=1.4)
        filled = "black" if number(cells, f"{what}_sure") else "white"
        axes.plot(mean, place, "o", color="black", markerfacecolor=filled, ms=5)
        if paper:
            axes.plot(number(cells, "paper"), place, "D", color=OKABE_ITO[1], markerfacecolor="white", ms=5)
    axes.set_yticks(range(len(rows)), [name_of(cells) for cells in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)


def name_of(cells: Cells) -> str:
    """Of a difference: the row, and its baseline where that is not the row's own SoftKD."""
    other = cells["baseline"]
    usual = other.startswith("softkd") and ROWS[other].teacher == ROWS[cells["name"]].teacher
    return LABELS[cells["name"]] + ("" if usual or other == "softkd" else f"\nminus {LABELS[other]}")
