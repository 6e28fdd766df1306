"""The study's figures, drawn from tables/ alone; one for which there are no numbers yet is left out.

python notebooks/study/figures.py
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from evidence import ROWS, TEACHERS, read
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from tables import TABLES

from distill_dynamics.report.figures.look import OKABE_ITO, STYLE

FIGURES = Path(__file__).parent / "figures"

Cells = dict[str, str]

LABELS = TEACHERS | ROWS
RANGES = {
    "global": "one range for all blocks",
    "layer": "each block's own range",
    "scale-free": "less log2 of magnitude",
}
CLAIMED = (
    "none",
    "spectralkd_f1",
    "spectralkd_l1",
    "spectralkd_l1_beta01",
    "spectralkd_f1_l1",
    "projectorkd_l1",
    "projectorkd_l1_frozen",
)
"""Rows of the headline."""
FOLLOWED = dict(
    zip(
        ("softkd", "spectralkd_l1", "spectralkd_f1", "projectorkd_l1", "spectralkd_f1_l1", "none"),
        OKABE_ITO,
        strict=True,
    )
)
"""Rows whose course is drawn; the paper's Figure 4 has the first, second, third and fifth."""


def table(name: str) -> dict[str, Cells]:
    """Entries of a table by their name."""
    return {entry["name"]: entry for entry in read(TABLES / f"{name}.csv")}


def number(cells: Cells, column: str) -> float:
    """NaN where it is not known."""
    return float(cells.get(column) or "nan")


def blocks(cells: Cells) -> NDArray[np.float64]:
    """[L]: the entry's values by block, NaN where there is none between others."""
    values = [(name, value) for name, value in cells.items() if name.startswith("block_")]
    depth = max((i for i, (_, value) in enumerate(values, start=1) if value), default=0)
    return np.array([float(value or "nan") for _, value in values[:depth]])


def by_epoch(name: str, **of: str) -> dict[int, Cells]:
    """Entries of a table that are of this row (and range), by epoch."""
    found = [c for c in table(name).values() if all(c[column] == value for column, value in of.items())]
    return {int(cells["epoch"]): cells for cells in found if cells["epoch"]}


def headline() -> Figure | None:
    """The README's: the teacher's U under two ranges, and what aligning its features is worth."""
    rows = [cells for row, cells in table("accuracy").items() if row in CLAIMED and cells.get("baseline")]
    if not rows:
        return None
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 3.3), layout="constrained")
    for axes, name in ((left, "global"), (middle, "layer")):
        draw_epochs(axes, "teacher_cait24", name)
        axes.set(title=f"teacher: {RANGES[name]}", xlabel="block")
    left.set_ylabel("entropy (bits), a line an epoch")
    draw_differences(right, rows)
    right.set(title="students: top-1 beside SoftKD's", xlabel="points, mean and 95 % interval")
    return figure


def differences() -> Figure | None:
    """Each row's top-1 less its baseline's."""
    shown = [cells for cells in table("accuracy").values() if cells.get("baseline")]
    figure, axes = plt.subplots(figsize=(7, 0.34 * len(shown) + 1), layout="constrained")
    draw_differences(axes, shown)
    axes.set_xlabel(
        "top-1 less SoftKD's on the same seeds (points)\n"
        "mean and 95 % interval; in colour: q < 0.05 (rows with a feature term)"
    )
    return figure if shown else None


def draw_differences(axes: Axes, rows: Sequence[Cells]) -> None:
    """Intervals from top to bottom, in colour where q < 0.05."""
    for place, cells in enumerate(rows):
        mean, low, high = (number(cells, f"last_difference_{part}") for part in ("mean", "low", "high"))
        sure = number(cells, "q") < 0.05
        colour = "0.45" if not sure else OKABE_ITO[1] if mean < 0 else OKABE_ITO[2]
        axes.plot([low, high], [place, place], color=colour, lw=2)
        axes.plot(mean, place, "o", color=colour)
    names = [
        LABELS[c["name"]] + ("" if c["baseline"] == "softkd" else f"\nless {LABELS[c['baseline']]}")
        for c in rows
    ]
    axes.set_yticks(range(len(rows)), names)
    axes.invert_yaxis()
    axes.axvline(0, color="0.3", lw=1)


def emergence() -> Figure | None:
    """Entropy by block, a line an epoch, under each range."""
    wanted = ("teacher_cait24", "none", "softkd", "spectralkd_l1")
    models = [m for m in wanted if by_epoch("shapes", row=m, range="global")]
    if not models:
        return None
    figure, grid = plt.subplots(
        len(RANGES), len(models), figsize=(2.7 * len(models) + 1, 6.6), layout="constrained", squeeze=False
    )
    for line, (name, title) in zip(grid, RANGES.items(), strict=True):
        for axes, model in zip(line, models, strict=True):
            draw_epochs(axes, model, name)
            axes.set_title(f"{LABELS[model]}\n{title}", fontsize=9)
        line[0].set_ylabel("bits")
    for axes in grid[-1]:
        axes.set_xlabel("block")
    scale = plt.cm.ScalarMappable(plt.Normalize(0, 1), "viridis_r")
    bar = figure.colorbar(scale, ax=grid, shrink=0.4, pad=0.02)
    bar.set_ticks([0, 1], labels=["untrained\n(dashed)", "the end"])
    return figure


def draw_epochs(axes: Axes, row: str, name: str) -> None:
    """The row's mean curves under a range: light early, dark late, dashed before training."""
    found = by_epoch("shapes", row=row, range=name)
    for epoch, cells in found.items():
        curve = blocks(cells)
        dashes = (0, (3, 2)) if epoch == 0 else "-"
        colour = plt.cm.viridis_r(epoch / max(found))
        axes.plot(range(1, len(curve) + 1), curve, color=colour, ls=dashes, lw=1.4)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))


def evolution() -> Figure | None:
    """Entropy of the first and the last block over the epochs, and what it is less SoftKD's."""
    shown = {row: found for row in FOLLOWED if (found := by_epoch("ends", row=row))}
    if not shown:
        return None
    figure, grid = plt.subplots(2, 2, figsize=(9, 6), layout="constrained", sharex=True)
    for panels, what in zip(grid, ("", "_difference"), strict=True):
        for axes, which in zip(panels, ("first", "last"), strict=True):
            for row, found in shown.items():
                mean, low, high = (
                    np.array([number(cells, f"{which}{what}_{part}") for cells in found.values()])
                    for part in ("mean", "low", "high")
                )
                axes.plot(list(found), mean, color=FOLLOWED[row], marker="o", ms=3, label=LABELS[row])
                axes.fill_between(list(found), low, high, color=FOLLOWED[row], alpha=0.15, lw=0)
            axes.set_title(f"{which} block" + (", less SoftKD's" if what else ""))
        panels[0].set_ylabel("entropy (bits)")
    for axes in grid[1]:
        axes.set_xlabel("epoch")
        axes.axhline(0, color="0.3", lw=1)
    grid[0, 1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def conflicts() -> Figure | None:
    """Cosines of the terms' gradients, by epoch and block."""
    wanted = ("spectralkd_f1", "spectralkd_l1", "projectorkd_l1", "spectralkd_f2_l6")
    shown = {row: found for row in wanted if (found := by_epoch("conflicts", row=row))}
    if not shown:
        return None
    figure, panels = plt.subplots(
        1, len(shown), figsize=(2.9 * len(shown), 3.2), layout="constrained", squeeze=False
    )
    for axes, (row, found) in zip(panels[0], shown.items(), strict=True):
        curves = [blocks(cells) for cells in found.values()]
        values = np.full((12, len(found)), np.nan)
        for place, curve in enumerate(curves):
            values[: len(curve), place] = curve
        extent = (-0.5, len(found) - 0.5, 0.5, len(values) + 0.5)
        image = axes.imshow(
            values, cmap="RdBu", vmin=-1, vmax=1, origin="lower", aspect="auto", extent=extent
        )
        axes.grid(False)
        axes.set(title=LABELS[row], xlabel="epoch", ylabel="block")
    figure.colorbar(image, ax=panels, label="cosine with the rest's gradient")
    return figure


def images() -> Figure | None:
    """Width of the interval of a block's entropy, and the level of the curve, by the number of images."""
    found: dict[str, list[Cells]] = {}
    for cells in table("images").values():
        found.setdefault(cells["run"], []).append(cells)
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    colours = dict(zip(TEACHERS, OKABE_ITO, strict=False))
    for run, entries in found.items():
        colour, label = colours.get(run, "0.55"), TEACHERS.get(run)
        counts = np.array([number(cells, "images") for cells in entries])
        widths, levels = (np.array([number(cells, w) for cells in entries]) for w in ("width", "level"))
        panels[0].plot(counts, widths, "o-", color=colour)
        panels[0].plot(counts, widths[0] * np.sqrt(counts[0] / counts), ":", color=colour, lw=1)
        panels[1].plot(counts, levels - levels[-1], "o-", color=colour, label=label)
    panels[1].plot([], [], "o-", color="0.55", label="students")
    panels[0].set(yscale="log", ylabel="width of the 95 % interval (bits)")
    for ticks in (panels[0].yaxis.set_major_formatter, panels[0].yaxis.set_minor_formatter):
        ticks("{x:g}")
    panels[0].set_title("of a block, the bins given (dotted: 1/√N)")
    panels[1].set(ylabel="bits", title="mean over blocks less that with most images")
    for axes in panels:
        axes.set(xscale="log", xlabel="probe images")
        axes.set_xticks(sorted({int(cells["images"]) for entries in found.values() for cells in entries}))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
    panels[1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure if found else None


def early() -> Figure | None:
    """How well what is known early ranks the rows."""
    entries = table("early").values()
    if not entries:
        return None
    names = list(dict.fromkeys(cells["number"] for cells in reversed(entries)))
    figure, axes = plt.subplots(figsize=(7, 0.3 * len(names) + 1), layout="constrained")
    for epoch, colour in zip(dict.fromkeys(cells["epoch"] for cells in entries), OKABE_ITO, strict=False):
        for cells in entries:
            if cells["epoch"] == epoch:
                filled = colour if number(cells, "q") < 0.05 else "white"
                place = names.index(cells["number"])
                axes.plot(number(cells, "rho"), place, "o", color=colour, markerfacecolor=filled)
        axes.plot([], [], "o", color=colour, label=f"after epoch {epoch}")
    axes.axvline(0, color="0.3", lw=1)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlim=(-1.05, 1.05), xlabel="rank correlation with the final top-1 over rows; filled: q < 0.05")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def spectra() -> Figure | None:
    """Flatness and shares of low and high frequencies of the channel spectra, by depth."""
    entries = list(table("spectra").values())
    rows = list(dict.fromkeys(cells["row"] for cells in entries))
    figure, panels = plt.subplots(1, 3, figsize=(9.5, 2.9), layout="constrained")
    titles = {"flatness": "flatness", "low": "share of low frequencies", "high": "share of high frequencies"}
    for axes, (what, title) in zip(panels, titles.items(), strict=True):
        for cells in entries:
            values = [number(cells, f"{what}_{where}_mean") for where in ("early", "middle", "late")]
            dashes = "-o" if cells["when"] == "trained" else ":"
            colour = OKABE_ITO[rows.index(cells["row"])]
            label = LABELS[cells["row"]] if cells["when"] == "trained" else None
            axes.plot(range(3), values, dashes, color=colour, ms=4, label=label)
        axes.set_xticks(range(3), ["early", "middle", "late"])
        axes.set_title(title)
    panels[2].legend(loc="center left", bbox_to_anchor=(1, 0.5), title="dotted: untrained")
    return figure if entries else None


DRAWN = (headline, differences, emergence, evolution, conflicts, images, early, spectra)


def draw(folder: Path) -> Iterator[Path]:
    """All that there are numbers for, as PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    for make in DRAWN:
        with style.context(STYLE):
            figure = make()
        if figure is not None:
            path = folder / f"{make.__name__}.png"
            figure.savefig(path, dpi=150)
            yield path
    plt.close("all")


if __name__ == "__main__":
    plt.switch_backend("agg")
    for path in draw(FIGURES):
        print(path.name)
