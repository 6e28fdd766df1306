"""The study's figures, drawn from tables/ alone; one for which there are no numbers yet is left out.

python notebooks/study/figures.py
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from evidence import read
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from real_vit_figure import real_vit
from rows import ROWS, TEACHERS
from tables import TABLES

from distill_dynamics.report.figures.look import OKABE_ITO, STYLE

FIGURES = Path(__file__).parent / "figures"

Cells = dict[str, str]

LABELS = TEACHERS | {name: row.label for name, row in ROWS.items()}
RANGES = {
    "global": "one range for all blocks",
    "layer": "each block's own range",
    "scaled": "blocks divided by their magnitude",
}
HEADLINE = (
    "none",
    "spectralkd_f1",
    "spectralkd_l1",
    "spectralkd_l1_60",
    "spectralkd_l1_beta01",
    "spectralkd_f1_l1",
    "projectorkd_l1",
    "projectorkd_l1_frozen",
)
CURVES = ("teacher_cait24", "softkd", "spectralkd_f1", "spectralkd_l1", "spectralkd_f1_l1")
FOLLOWED = dict(
    zip(("spectralkd_l1", "spectralkd_f1", "spectralkd_f1_l1", "projectorkd_l1"), OKABE_ITO, strict=False)
)
"""Rows whose course is drawn, each in its colour."""


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


def headline() -> Figure | None:
    """The README's: how the teacher's U emerges, what it is made of, what aligning its features is worth."""
    rows = [cells for row, cells in table("accuracy").items() if row in HEADLINE and cells.get("baseline")]
    if not rows:
        return None
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained")
    draw_epochs(left, "teacher_cait24")
    left.set(title="teacher: untrained dashed, trained dark", xlabel="block", ylabel="entropy (bits)")
    draw_ranges(middle, "teacher_cait24")
    middle.set(title="teacher, trained: bins with", xlabel="block")
    middle.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2))
    draw_differences(right, rows)
    right.set(
        title="students: top-1 minus SoftKD's",
        xlabel="points (95 % interval; colour: q < 0.05)\ndiamonds: the paper's, on ImageNet",
    )
    return figure


def differences() -> Figure | None:
    """Each row's top-1 minus its baseline's."""
    shown = [cells for cells in table("accuracy").values() if cells.get("baseline")]
    figure, axes = plt.subplots(figsize=(8, 0.3 * len(shown) + 1.2), layout="constrained")
    draw_differences(axes, shown)
    axes.set_xlabel(
        "top-1 minus SoftKD's on the same seeds (points): mean and 95 % interval\n"
        "in colour: q < 0.05 (rows with a feature term)\n"
        "diamonds: the paper's, on ImageNet"
    )
    return figure if shown else None


def courses() -> Figure | None:
    """Top-1 over the epochs with and without L 1, in trainings of several lengths, and the difference."""
    rows = dict.fromkeys(cells["row"] for cells in table("courses").values())
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for row, colour in zip(rows, OKABE_ITO, strict=False):
        found = by_epoch("courses", row=row)
        for what, dashes in (("softkd", (0, (3, 2))), ("l1", "-")):
            top1 = [number(cells, f"{what}_mean") for cells in found.values()]
            left.plot(list(found), top1, color=colour, ls=dashes, lw=1.4)
        right.plot(
            list(found), [number(cells, "gain_mean") for cells in found.values()], color=colour, lw=1.4
        )
        end = max(found)
        mean, low, high = (number(found[end], f"gain_{part}") for part in ("mean", "low", "high"))
        right.errorbar(end, mean, [[mean - low], [high - mean]], color=colour, fmt="o", label=f"{end} epochs")
    left.plot([], [], color="0.3", ls=(0, (3, 2)), label="SoftKD")
    left.plot([], [], color="0.3", label="SpectralKD L 1")
    left.set(xlabel="epoch", ylabel="top-1 (%)", ylim=(84, None), title="top-1 above 84 %, mean over seeds")
    left.legend(loc="lower right")
    right.axhline(0, color="0.3", lw=1)
    right.set(xlabel="epoch", ylabel="points", title="SpectralKD L 1 minus SoftKD, 95 % interval at the end")
    right.legend(loc="upper right", title="trained for")
    for axes in (left, right):
        axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
    return figure if rows else None


def draw_differences(axes: Axes, rows: Sequence[Cells]) -> None:
    """Intervals from top to bottom, in colour where q < 0.05, and the paper's differences."""
    for place, cells in enumerate(rows):
        mean, low, high = (number(cells, f"last_difference_{part}") for part in ("mean", "low", "high"))
        sure = number(cells, "q") < 0.05
        colour = "0.45" if not sure else OKABE_ITO[1] if mean < 0 else OKABE_ITO[2]
        axes.plot([low, high], [place, place], color=colour, lw=2)
        axes.plot(mean, place, "o", color=colour)
        axes.plot(number(cells, "paper"), place, "D", color="0.2", markerfacecolor="white", ms=5)
    names = [
        LABELS[c["name"]] + ("" if c["baseline"] == "softkd" else f"\nminus {LABELS[c['baseline']]}")
        for c in rows
    ]
    axes.set_yticks(range(len(rows)), names)
    axes.invert_yaxis()
    axes.axvline(0, color="0.3", lw=1)


def emergence() -> Figure | None:
    """Entropy by block: over the epochs, and at the end under each range."""
    models = [m for m in CURVES if by_epoch("shapes", row=m, range="global")]
    if not models:
        return None
    figure, grid = plt.subplots(
        2,
        len(models),
        figsize=(2.4 * len(models) + 1, 5.6),
        layout="constrained",
        squeeze=False,
        sharey="row",
    )
    for panels, model in zip(grid.T, models, strict=True):
        draw_epochs(panels[0], model)
        panels[0].set_title(f"{LABELS[model]}\nover the epochs", fontsize=9)
        draw_ranges(panels[1], model)
        panels[1].set_title("at the end", fontsize=9)
        panels[1].set_xlabel("block")
    for axes in grid[:, 0]:
        axes.set_ylabel("entropy (bits)")
    handles, labels = grid[1, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(RANGES), title="bins with")
    scale = plt.cm.ScalarMappable(plt.Normalize(0, 1), "viridis_r")
    bar = figure.colorbar(scale, ax=grid[0], shrink=0.7, pad=0.02)
    bar.set_ticks([0, 1], labels=["untrained\n(dashed)", "the end"])
    return figure


def draw_epochs(axes: Axes, row: str) -> None:
    """The row's mean curves under the paper's range: light early, dark late, dashed before training."""
    found = by_epoch("shapes", row=row, range="global")
    for epoch, cells in found.items():
        curve = blocks(cells)
        dashes = (0, (3, 2)) if epoch == 0 else "-"
        colour = plt.cm.viridis_r(epoch / max(found))
        axes.plot(range(1, len(curve) + 1), curve, color=colour, ls=dashes, lw=1.4)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))


def draw_ranges(axes: Axes, row: str) -> None:
    """The row's mean curve at the end under each range, ± a standard deviation over seeds."""
    for (value_range, label), colour in zip(RANGES.items(), OKABE_ITO, strict=False):
        cells = table("ranges").get(f"{row} {value_range}")
        if cells is None:
            continue
        curve, spread = blocks(cells), blocks(cells, "sd")
        places = range(1, len(curve) + 1)
        axes.plot(places, curve, color=colour, label=label)
        if len(spread):
            axes.fill_between(places, curve - spread, curve + spread, color=colour, alpha=0.2, lw=0)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))


def evolution() -> Figure | None:
    """Entropy and scale of the first and the last block over the epochs, minus SoftKD's."""
    shown = {row: found for row in FOLLOWED if (found := by_epoch("ends", row=row))}
    if not shown:
        return None
    figure, grid = plt.subplots(2, 2, figsize=(9, 5.6), layout="constrained", sharex=True)
    for panels, what, unit in zip(grid, ("", "_scale"), ("entropy (bits)", "log2 of magnitude"), strict=True):
        for axes, which in zip(panels, ("first", "last"), strict=True):
            for row, found in shown.items():
                draw_course(axes, found, f"{which}{what}_difference", FOLLOWED[row], LABELS[row])
            axes.axvspan(0, 2, color="0.93", zorder=0)  # the warm-up's rate
            axes.set_title(f"{which} block: {unit}, minus SoftKD's", fontsize=9)
            axes.axhline(0, color="0.3", lw=1)
    for axes in grid[1]:
        axes.set_xlabel("epoch")
    grid[0, 1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def draw_course(axes: Axes, found: dict[int, Cells], what: str, colour: str, label: str) -> None:
    """A mean over the epochs, with its interval."""
    mean, low, high = (
        np.array([number(cells, f"{what}{part}") for cells in found.values()])
        for part in ("_mean", "_low", "_high")
    )
    axes.plot(list(found), mean, color=colour, marker="o", ms=3, label=label)
    axes.fill_between(list(found), low, high, color=colour, alpha=0.15, lw=0)


def conflicts() -> Figure | None:
    """Cosines of the terms' gradients with the rest's: by epoch, and by block."""
    shown = {row: found for row in FOLLOWED if (found := by_epoch("conflicts", row=row))}
    if not shown:
        return None
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained", sharey=True)
    for row, found in shown.items():
        draw_course(left, found, "cosine", FOLLOWED[row], LABELS[row])
        curve = blocks(table("conflicts")[row])
        right.plot(range(1, len(curve) + 1), curve, "o-", color=FOLLOWED[row], ms=3, label=LABELS[row])
    left.set(
        xlabel="epoch", ylabel="cosine with the rest's gradient", title="mean over the blocks it reaches"
    )
    right.set(xlabel="block", title="mean over the epochs")
    for axes in (left, right):
        axes.axhline(0, color="0.3", lw=1)
    right.legend(loc="center left", bbox_to_anchor=(1, 0.5))
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
        if run in colours:
            panels[0].plot(counts, widths[0] * np.sqrt(counts[0] / counts), ":", color=colour, lw=1)
        panels[1].plot(counts, levels - levels[-1], "o-", color=colour, label=label)
    panels[1].plot([], [], "o-", color="0.55", label="students")
    panels[0].set(yscale="log", ylabel="width of the 95 % interval (bits)")
    for ticks in (panels[0].yaxis.set_major_formatter, panels[0].yaxis.set_minor_formatter):
        ticks("{x:g}")
    panels[0].set_title("median block, bins unchanged (dotted: as 1/√N)")
    panels[1].set(ylabel="bits", title="mean entropy of all blocks, minus that of most images")
    for axes in panels:
        axes.set(xscale="log", xlabel="probe images")
        axes.set_xticks(sorted({int(cells["images"]) for entries in found.values() for cells in entries}))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
    panels[1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure if found else None


def early() -> Figure | None:
    """How well what is known early ranks the rows."""
    entries = list(table("early").values())
    if not entries:
        return None
    *tried, ceiling = entries
    names = list(dict.fromkeys(cells["number"] for cells in reversed(tried)))
    epochs = list(dict.fromkeys(cells["epoch"] for cells in tried))
    figure, axes = plt.subplots(figsize=(7, 0.36 * len(names) + 1), layout="constrained")
    for i, (epoch, colour) in enumerate(zip(epochs, OKABE_ITO, strict=False)):
        for cells in (cells for cells in tried if cells["epoch"] == epoch):
            place = names.index(cells["number"]) + 0.3 * (0.5 - i)
            filled = colour if number(cells, "q") < 0.05 else "white"
            axes.plot([number(cells, "rho_low"), number(cells, "rho_high")], [place] * 2, color=colour, lw=1)
            axes.plot(number(cells, "rho_mean"), place, "o", color=colour, markerfacecolor=filled, ms=5)
        axes.plot([], [], "o", color=colour, label=f"after epoch {epoch}")
    axes.axvline(0, color="0.3", lw=1)
    axes.axvline(number(ceiling, "rho_mean"), color="0.3", lw=1, ls=":", label="the final top-1 itself")
    axes.set_yticks(range(len(names)), names)
    axes.set(xlim=(-1.05, 1.05))
    axes.set_xlabel("rank correlation with the final top-1 over rows: 95 % interval\nfilled: q < 0.05")
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
            if cells["when"] == "untrained" and cells["row"] not in TEACHERS:
                continue
            dashes = "-o" if cells["when"] == "trained" else ":"
            colour = OKABE_ITO[rows.index(cells["row"])]
            label = LABELS[cells["row"]] if cells["when"] == "trained" else None
            axes.plot(range(3), values, dashes, color=colour, ms=4, label=label)
        axes.set_xticks(range(3), ["early", "middle", "late"])
        axes.set_title(title)
    panels[2].legend(loc="center left", bbox_to_anchor=(1, 0.5), title="dotted: untrained")
    return figure if entries else None


DRAWN = (headline, differences, courses, emergence, evolution, conflicts, images, early, spectra, real_vit)


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
