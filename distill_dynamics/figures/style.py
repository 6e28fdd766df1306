"""The style of every figure: colours, ticks, legends and the notes below the axes."""

import math
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

from distill_dynamics.dynamics.profile import FloatArray, Profile

# From matplotlib's defaults, not from the caller's style: a dark notebook must not blacken a report.
STYLE: list[Any] = [
    "default",
    {
        "font.size": 9,
        "axes.edgecolor": "0.4",
        "axes.titlelocation": "left",
        "axes.titlesize": 10,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.axisbelow": True,
        "axes.grid": True,
        "grid.color": "0.92",
        "xtick.color": "0.4",
        "ytick.color": "0.4",
        "xtick.labelcolor": "black",
        "ytick.labelcolor": "black",
        "xtick.labelsize": 8,
        "ytick.labelsize": 8,
        "legend.fontsize": 8,
        "legend.frameon": False,
    },
]

# Okabe and Ito's colours, which colour-blind readers can tell apart; none is near viridis.
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")

TITLE = "title"
"""The gid of the title of a figure of one thing; a page, which has it as a heading, leaves it out."""

# Styles that mean the same in every figure.
BEST: dict[str, Any] = {"color": "#D55E00", "linestyle": "--", "linewidth": 1.5}
TEACHER: dict[str, Any] = {"color": "0.15", "linestyle": "-.", "linewidth": 1.5}
CHANCE: dict[str, Any] = {"color": "0.5", "linestyle": ":", "linewidth": 1.5}

_MARKERS = "os^Dv"
_DASHES: tuple[Any, ...] = ("-", (0, (4, 2)), (0, (1.5, 1)), (0, (5, 1.5, 1, 1.5, 1, 1.5)))

_PUBLISHED = "Layer_"  # the names of layers in the published CSV files begin so

_BIN_NOTES = {
    "global": "Bin range is global per model and epoch: different epochs have different bins.",
    "layer": "Bin range is per layer and epoch: different layers and epochs have different bins.",
    "scaled": "Bin range is in units of each layer's magnitude: layers and epochs have different bins.",
}


LineStyle = Mapping[str, Any]
"""Colour, dash and marker of a run in all figures. Runs that share a line of the legend have the same style,
and in it a "label"."""


def run_styles(names: Sequence[str], methods: Mapping[str, str] | None = None) -> dict[str, LineStyle]:
    """What tells each run from the others: colour, dash and marker, 60 different ones.

    Runs that `methods` (name → method) says are of one method share their colour and differ by dash, from
    the fifth on also by marker; a run that is not in it is alone.
    """
    of = {name: (methods or {}).get(name, name) for name in names}
    numbers = {method: number for number, method in enumerate(dict.fromkeys(of.values()))}
    styles, before = dict[str, LineStyle](), Counter[str]()
    for name, method in of.items():
        number, member = numbers[method], before[method]
        styles[name] = {
            "color": OKABE_ITO[number % len(OKABE_ITO)],
            "linestyle": _DASHES[(number + member) % len(_DASHES)],
            "marker": _MARKERS[(number + member // len(_DASHES)) % len(_MARKERS)],
            "markersize": 3.5,
            "linewidth": 1.4,
        }
        before[method] += 1
    return styles


def epoch_colours(count: int) -> FloatArray:
    """[count, 4] from light green (first epoch) to dark violet; viridis's yellow is lost on white."""
    return mpl.colormaps["viridis"](np.linspace(0.8, 0.0, count) if count > 1 else [0.0])


def epoch_bar(figure: Figure, axes: Sequence[Axes], epochs: Sequence[int | None]) -> None:
    """One swatch an epoch, so that epochs close together are as easy to tell apart as distant ones."""
    count = len(epochs)
    if count < 2:
        return
    swatches = BoundaryNorm(np.arange(count + 1) - 0.5, count), ListedColormap(epoch_colours(count))
    # As tall as a panel or two: beside many rows of them a bar of their height would be all that one sees.
    share = min(1, 4 / figure.get_figheight())
    place: dict[str, Any] = {"shrink": share, "aspect": 30, "anchor": (0, 1), "pad": 0.02}
    bar = figure.colorbar(ScalarMappable(*swatches), ax=axes, label="Epoch", **place)
    ticks(bar.ax.yaxis, np.arange(0.0, count), epoch_labels(epochs))
    bar.ax.tick_params(length=0)
    bar.ax.minorticks_off()
    bar.outline.set_visible(False)


def notes(
    *profiles: Profile | None, bands: bool = True, bins: bool = True, bootstrap: bool = False
) -> list[str]:
    """What a reader must know before comparing the curves of these Profiles."""
    drawn = [profile for profile in profiles if profile is not None]
    sentences = []
    if bands and any(len(profile.entropy_images) > 1 for profile in drawn):
        what = "95 % bootstrap intervals" if bootstrap else "± standard error"
        sentences.append(f"Bands: {what} over images.")
    if bins and len(drawn) > 1:
        modes = {profile.range_mode for profile in drawn}
        sentences += [note for mode, note in _BIN_NOTES.items() if mode in modes]
    return sentences


def footer(figure: Figure, notes: Sequence[str], legend: Mapping[str, Line2D] | None = None) -> None:
    """A legend below all axes, where it covers no data, and below it what a reader must know.

    The figure grows by what is above an inch of them.
    """
    across = int(figure.get_figwidth() / 0.056)  # characters, at most that wide each
    lines = [line for note in notes for line in textwrap.wrap(note, across, break_on_hyphens=False)]
    below = 0.08 + 0.13 * len(lines) if lines else 0.0  # inches
    room, columns = below, 1
    if legend:
        # As many columns as fit: a character is about 0.06 inch wide.
        widest = max(len(plain(label)) for label in legend) + 8
        columns = max(1, min(len(legend), int(figure.get_figwidth() / 0.06 / widest)))
        room += 0.14 + 0.17 * math.ceil(len(legend) / columns)
    height = figure.get_figheight() + max(0, room - 1)
    figure.set_figheight(height)
    figure.text(0.01, 0.05 / height, "\n".join(lines), fontsize=7.5, color="0.35", va="bottom")
    if legend:
        place: dict[str, Any] = {"loc": "lower center", "bbox_to_anchor": (0.5, below / height)}
        labels = [plain(label) for label in legend]
        figure.legend(list(legend.values()), labels, **place, ncols=columns, handlelength=3)
    # The layout engine makes no room for these by itself.
    figure.set_layout_engine("constrained", rect=(0, room / height, 1, 1 - room / height))


def in_legend(styles: Mapping[str, LineStyle], name: str) -> str:
    """What the legend calls a run: its method, where the runs of each have one style, else its name."""
    return styles[name].get("label", name)


def plain(text: str, longest: int = 120) -> str:
    """A name as matplotlib can draw it: no formula, no sign that no font has, and about `longest` signs.

    Names may hold a dollar sign, half a character, or a book, which matplotlib takes minutes for.
    """
    return _shortened(text, longest).replace("$", r"\$")


def wrapped(title: str) -> str:
    """A panel's title in lines that fit above a narrow panel."""
    return "\n".join(textwrap.wrap(_shortened(title, 120), 28, break_on_hyphens=False)).replace("$", r"\$")


def _shortened(text: str, longest: int) -> str:
    if len(text) > longest:
        text = f"{text[: longest // 2]}…{text[-longest // 2 :]}"
    return "".join(sign if sign.isprintable() else "\ufffd" for sign in text)


def grid_of(panels: int, width: float, height: float, sharey: bool = False) -> tuple[Figure, list[Axes]]:
    """A Figure of so many panels in at most four columns; the room left over is empty.

    `width` and `height` are those of one panel, inches.
    """
    rows = math.ceil(panels / 4)
    columns = math.ceil(panels / rows)
    size = max(4.6, width * columns + 0.9), height * rows
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharey=sharey)
    flat = list(axes.flat)
    for ax in flat[panels:]:
        ax.remove()
    return figure, flat[:panels]


def not_measured(ax: Axes) -> None:
    """Say in the middle of a panel why it is empty."""
    ax.text(0.5, 0.5, "not measured", transform=ax.transAxes, ha="center", color="0.4")


def finite(ax: Axes) -> FloatArray:
    """Every finite y of the lines of a panel."""
    drawn = [np.asarray(line.get_ydata(), dtype=float).ravel() for line in ax.lines]
    values = np.concatenate([np.empty(0), *drawn])
    return values[np.isfinite(values)]


def wide_span(values: FloatArray) -> bool:
    """Whether positive values span more than a factor of 30, so that a linear axis hides the small ones."""
    return bool(values.size and 0 < values.min() < values.max() / 30)


def log_y(ax: Axes) -> None:
    """A log axis with plain numbers: at 1, 2 and 5 below three decades, at 1, 2, ..., 9 below half of one."""
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    steps = (1,) if high / low > 1000 else (1, 2, 5) if high / low > 3 else range(1, 10)
    ax.yaxis.set_major_locator(LogLocator(subs=steps))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter(NullFormatter())


def ticks(axis: Axis, places: FloatArray, labels: Sequence[str], most: int = 12) -> None:
    """At most about `most` of the labels, evenly spaced, always the first and the last."""
    last = len(labels) - 1
    step = max(1, math.ceil(last / (most - 1)))
    shown = [row for row in range(0, last, step) if row == 0 or last - row > step / 2]
    if shown[-1:] != [last]:
        shown.append(last)
    axis.set_ticks(places[shown], labels=[plain(labels[row], 24) for row in shown])


def block_places(profile: Profile) -> FloatArray:
    """[L] where each layer is on an axis of blocks: 1 to L."""
    return np.arange(1.0, len(profile.layers) + 1)


def label_blocks(ax: Axes, profile: Profile, most: int = 12) -> None:
    """Name the x axis of curves by block, with at most about `most` ticks."""
    ticks(ax.xaxis, block_places(profile), layer_labels(profile), most)
    if word(profile) == "layer" and sum(map(len, profile.layers)) > 32 * most / 12:
        ax.tick_params("x", labelrotation=30)
    ax.set_xlabel(word(profile).capitalize())


def layer_labels(profile: Profile) -> list[str]:
    """What each layer is called on an axis: its block number, or its name in a network of few stages."""
    if _published(profile):
        return [name.removeprefix(_PUBLISHED) for name in profile.layers]
    if word(profile) == "layer":
        return profile.layers
    return [str(block) for block in profile.blocks]


def word(profile: Profile) -> str:
    """What a layer of this model is called in text."""
    numbered = _published(profile) or any(name.startswith("blocks") for name in profile.layers)
    return "block" if numbered or len(profile.layers) > 6 else "layer"


def _published(profile: Profile) -> bool:
    return all(name.startswith(_PUBLISHED) for name in profile.layers)


def places(profile: Profile) -> list[str]:
    """What each layer is called in a sentence: "block 4"."""
    return [f"{word(profile)} {label}" for label in layer_labels(profile)]


def epoch_labels(epochs: Sequence[int | None]) -> list[str]:
    """Epochs as text."""
    return ["–" if epoch is None else str(epoch) for epoch in epochs]


def named(profile: Profile) -> str:
    """Model and epoch."""
    return profile.model if profile.epoch is None else f"{profile.model}, epoch {profile.epoch}"
