"""The study's figures, drawn from tables/ alone.

python notebooks/study/figures.py
"""

from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from accuracies import LENGTHS
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from panels import (
    COLOURS,
    LABELS,
    RANGES,
    ZERO,
    Cells,
    blocks,
    by_epoch,
    colour_of,
    draw_course,
    draw_differences,
    draw_epochs,
    draw_gains,
    draw_ranges,
    number,
    table,
    whole_numbers,
)
from real_vit_figure import real_vit
from rows import TEACHERS

from distill_dynamics.figures.style import STYLE

FIGURES = Path(__file__).parent / "figures"

EMERGING = ("teacher_cait24", "teacher_cait24_std035", "softkd_60", "spectralkd_l1_60", "spectralkd_f1_l1")
RANGED = ("teacher_cait24", "teacher_cait24_std035", "none", "none_std01", "softkd", "spectralkd_l1")
PAPERS_EARLY = (10, 30)
"""Percent of the training."""
LONG = ("softkd_60", "spectralkd_l1_60")
CONFLICTING = ("spectralkd_l1", "spectralkd_f1", "spectralkd_f1_l1", "projectorkd_l1")


def headline() -> Figure:
    """The README's: what the U is made of, the last block over a long training, and what aligning it adds."""
    figure, grid = plt.subplots(1, 3, figsize=(11, 3.5), layout="constrained")
    draw_ranges(grid[0], "teacher_cait24", ("global", "scaled"))
    grid[0].set(title="The teacher's U is mostly scale", xlabel="block", ylabel="entropy (bits)")
    draw_last_block(grid[1])
    grid[1].set(title="Suppression and rebound", xlabel="epoch", ylabel="last block's entropy (bits)")
    draw_gains(grid[2])
    grid[2].set(
        title="Aligning the last block helps early", xlabel="epoch", ylabel="top-1, points above SoftKD"
    )
    for axes, title in zip(grid, ("bins with", "mean of three seeds", "trained for"), strict=True):
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), title=title)
    return figure


def draw_last_block(axes: Axes) -> None:
    """The last block's entropy in the long trainings, mean over seeds; grey: the paper's early epochs."""
    for row in LONG:
        found = by_epoch("ends", row=row)
        means = [number(cells, "last_mean") for cells in found.values()]
        axes.plot(list(found), means, color=colour_of(row), lw=1.4, label=LABELS[row])
    shade_early(axes)
    whole_numbers(axes)


def shade_early(axes: Axes) -> None:
    """The epochs over which suppression is measured."""
    cells = table("evolution")[LONG[1]]
    axes.axvspan(number(cells, "early_from"), number(cells, "early_to"), color="0.93", zorder=0)


def emergence() -> Figure:
    """Entropy by block over the epochs."""
    figure, grid = plt.subplots(1, len(EMERGING), figsize=(11, 2.9), layout="constrained", sharey=True)
    for axes, row in zip(grid, EMERGING, strict=True):
        draw_epochs(axes, row)
        axes.set_title(f"{LABELS[row]}\n", fontsize=9)
        axes.set_xlabel("block")
    grid[0].set_ylabel("entropy (bits)")
    bar = figure.colorbar(plt.cm.ScalarMappable(plt.Normalize(0, 1), "viridis_r"), ax=grid, pad=0.01)
    bar.set_ticks([0, 1], labels=["start", "end"])
    return figure


def ranges() -> Figure:
    """Entropy by block at the end under each range."""
    figure, grid = plt.subplots(1, len(RANGED), figsize=(11, 3.1), layout="constrained", sharey=True)
    for axes, row in zip(grid, RANGED, strict=True):
        draw_ranges(axes, row)
        axes.set_title(LABELS[row].replace(", ", ",\n"), fontsize=9)
        axes.set_xlabel("block")
    grid[0].set_ylabel("entropy (bits)")
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(RANGES), title="bins with")
    return figure


def differences() -> Figure:
    """Each row's top-1 and test loss minus its baseline's."""
    shown = [cells for cells in table("accuracy").values() if cells.get("baseline")]
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(9, 0.27 * len(shown) + 1.1), layout="constrained", sharey=True
    )
    draw_differences(left, shown, "last", paper=True)
    draw_differences(right, shown, "loss", paper=False)
    left.set(xlabel="points", title="top-1 (right is better)")
    right.set(xlabel="nats", title="test loss (left is better)")
    return figure


def evolution() -> Figure:
    """The last block in the long trainings: entropy and scale; its difference in trainings of each length."""
    figure, (entropy, scale, difference) = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
    draw_last_block(entropy)
    entropy.set(title="last block's entropy", ylabel="bits", xlabel="epoch")
    for row in LONG:
        found = by_epoch("ends", row=row)
        draw_course(scale, found, "last_scale", f"{LABELS[row]}, last block", color=colour_of(row))
        draw_course(
            scale, found, "others_scale", "its other blocks, mean", color=colour_of(row), ls=(0, (3, 2))
        )
    shade_early(scale)
    whole_numbers(scale)
    scale.set(title="log2 of magnitude", xlabel="epoch")
    for row, dashes in zip(LENGTHS, (":", "--", "-"), strict=True):
        found = by_epoch("ends", row=row)
        share = {100 * epoch / max(found): cells for epoch, cells in found.items()}
        draw_course(
            difference, share, "last_difference", f"{max(found)} epochs", color=colour_of(row), ls=dashes
        )  # type: ignore[arg-type]
    difference.axvspan(*PAPERS_EARLY, color="0.93", zorder=0)
    difference.axhline(0, **ZERO)
    difference.set(title="last block, L 1 minus SoftKD", ylabel="bits", xlabel="share of the training (%)")
    for axes in (entropy, scale, difference):
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2))
    return figure


def conflicts() -> Figure:
    """Cosines of the terms' gradients with the rest's: by epoch, and by block."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained", sharey=True)
    for row in CONFLICTING:
        draw_course(left, by_epoch("conflicts", row=row), "cosine", color=COLOURS[row], marker="o", ms=3)
        curve = blocks(table("conflicts")[row])
        right.plot(range(1, len(curve) + 1), curve, "o-", color=COLOURS[row], ms=3, label=LABELS[row])
    left.set(
        xlabel="epoch", ylabel="cosine with the rest's gradient", title="mean over the blocks it reaches"
    )
    right.set(xlabel="block", title="mean over the epochs")
    for axes in (left, right):
        axes.axhline(0, **ZERO)
        whole_numbers(axes)
    right.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def images() -> Figure:
    """Level and shape of a curve by the number of probe images."""
    found: dict[str, list[Cells]] = {}
    for cells in table("images").values():
        found.setdefault(cells["run"], []).append(cells)
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.0), layout="constrained", sharey=True)
    for run, entries in found.items():
        counts = [number(cells, "images") for cells in entries]
        levels = np.array([number(cells, "level") for cells in entries])
        look = {"color": COLOURS.get(run, "black"), "label": TEACHERS.get(run)}
        panels[0].plot(counts, levels - levels[-1], "o-", ms=4, **look)
        panels[1].plot(counts, [number(cells, "shape") for cells in entries], "o-", ms=4, **look)
    panels[1].plot([], [], "o-", color="black", ms=4, label="students, one seed each")
    panels[0].set(ylabel="bits", title="level, minus that of most images")
    panels[1].set(title="shape: distance from that of most images")
    for axes in panels:
        axes.axhline(0, **ZERO)
        axes.set(xscale="log", xlabel="probe images")
        axes.set_xticks(counts)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
    panels[1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def early() -> Figure:
    """How well what is known early ranks the rows."""
    tried = [cells for cells in table("early").values() if cells["q"]]
    names = list(dict.fromkeys(cells["number"] for cells in tried))
    epochs = list(dict.fromkeys(cells["epoch"] for cells in tried))
    rho = np.full((len(names), len(epochs)), np.nan)
    figure, axes = plt.subplots(figsize=(6.4, 0.27 * len(names) + 0.8), layout="constrained")
    for cells in tried:
        place = names.index(cells["number"]), epochs.index(cells["epoch"])
        rho[place] = number(cells, "rho_mean")
        sure = number(cells, "q") < 0.05
        text = f"{np.round(rho[place], 2) + 0.0:+.2f}".replace("-", "−")
        dark = abs(rho[place]) > 0.6
        axes.text(
            place[1], place[0], text, ha="center", va="center", fontsize=8,
            color="white" if dark else "black", fontweight="bold" if sure else "normal",
        )  # fmt: skip
    shown = axes.imshow(rho, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
    axes.grid(False)
    axes.set_xticks(range(len(epochs)), epochs)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("epoch, of twelve")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    figure.colorbar(shown, ax=axes, label="rank correlation", shrink=0.7)
    return figure


def spectra() -> Figure:
    """Flatness and shares of low and high frequencies of the channel spectra, by depth."""
    entries = table("spectra")
    figure, panels = plt.subplots(1, 3, figsize=(10.5, 2.9), layout="constrained")
    titles = {"flatness": "flatness", "low": "share of low frequencies", "high": "share of high frequencies"}
    for axes, (what, title) in zip(panels, titles.items(), strict=True):
        for i, (row, cells) in enumerate(entries.items()):
            mean, low, high = (
                np.array([number(cells, f"{what}_{where}_{part}") for where in ("early", "middle", "late")])
                for part in ("mean", "low", "high")
            )
            places = np.arange(3) + 0.06 * (i - len(entries) / 2)
            look = {"color": colour_of(row), "label": LABELS[row], "ms": 3, "lw": 1.2}
            look["ls"] = "--" if row.endswith("_60") else "-"
            axes.errorbar(places, mean, [mean - low, high - mean], fmt="o", **look)
        axes.set_xticks(range(3), ["early", "middle", "late"])
        axes.set_title(title)
    panels[2].legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


DRAWN = (headline, emergence, ranges, real_vit, differences, evolution, conflicts, images, early, spectra)


def draw(folder: Path) -> Iterator[Path]:
    """All of them, as PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    for make in DRAWN:
        with style.context(STYLE):
            figure = make()
        path = folder / f"{make.__name__}.png"
        figure.savefig(path, dpi=150)
        yield path
    plt.close("all")


if __name__ == "__main__":
    plt.switch_backend("agg")
    for path in draw(FIGURES):
        print(path.name)
