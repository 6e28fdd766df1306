"""Figures: Profiles in, a matplotlib Figure out; each figure is drawn here and nowhere else.

W&B, the HTML report, the README and notebooks all show these. No I/O, and no pyplot: a Figure made
here belongs to its caller alone, so that none is left open in a long run and no display is needed.
Save one with `figure.savefig(path, dpi=200)`.
Letters: L layers, C_l channels of layer l, k frequency along the channels.
"""

import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import cycle
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from distill_dynamics.dynamics.profile import FloatArray, Profile
from distill_dynamics.errors import UserError

# From matplotlib's defaults, not from the caller's style: a dark notebook must not blacken a report.
_STYLE: list[Any] = [
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
_BEST = "#D55E00"
_PAIR = ("#0072B2", "#D55E00")
_TERMS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")

_BIN_NOTES = {
    "global": "Bin range is global per model and epoch: curves of different epochs have different bins.",
    "layer": "Bin range is per layer and epoch: different layers and epochs have different bins.",
}

_MEASURES = {
    "entropy": ("Entropy", "Entropy (bits)"),
    "magnitude": ("Activation magnitude", "Mean |A|"),
}


@style.context(_STYLE)
def entropy_evolution(
    students: Sequence[Profile], teacher: Profile | None = None, best: Profile | None = None
) -> Figure:
    """Entropy (Eq. 5, bits) against block: one line an epoch, the teacher dashed, the best checkpoint orange.

    Bands are ± one standard error over images. A teacher of another depth is drawn at matched relative
    depth (first block on first, last on last) with its own block numbers along the top.

    Raises `ValueError` without students; `UserError` where students or `best` differ in depth, or where
    two of them are of one epoch or several of none.
    """
    return _evolution(students, teacher, best, "entropy")


@style.context(_STYLE)
def magnitude_evolution(
    students: Sequence[Profile], teacher: Profile | None = None, best: Profile | None = None
) -> Figure:
    """Magnitude (Eq. 6) against block, drawn and guarded as `entropy_evolution`.

    The axis is logarithmic where the values span more than a factor of 30.
    """
    return _evolution(students, teacher, best, "magnitude")


@style.context(_STYLE)
def spectra(profile: Profile, title: str | None = None) -> Figure:
    """Channel spectrum (Eq. 2) of two early, two middle and two late blocks; of all, if fewer than six.

    x is k / C_l, so that layers of different width share an axis. The input is real, the spectrum
    symmetric: the half above 0.5 is left out. k = 0, the magnitude of the mean over channels, is a dot of
    its own: in a network with ReLU it is far above the rest. Bands are ± one standard error over images.

    Raises `UserError` where there is no spectrum above zero.
    """
    if not any((values > 0).any() for values in profile.spectrum):
        raise UserError(f"{_name(profile)}: no layer has a spectrum above zero, so there is none to draw")
    depth = len(profile.layers)
    names, word = _labels(profile), _word(profile).capitalize()
    if depth < 6:
        panels = [(name if word == "Layer" else f"{word} {name}", [row]) for row, name in enumerate(names)]
    else:
        middle = depth // 2
        panels = [("Early", [0, 1]), ("Middle", [middle - 1, middle]), ("Late", [depth - 2, depth - 1])]

    figure = Figure(figsize=(max(4.5, min(2.6 * len(panels), 9.5)), 3.4), layout="constrained")
    axes = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    for ax, (heading, rows) in zip(axes, panels, strict=True):
        for row, color in zip(rows, _PAIR, strict=False):
            _draw_spectrum(ax, profile, row, color, label=f"{word} {names[row]}")
        ax.set_title(heading)
        ax.set_xlabel("Channel frequency k / C")
        if len(rows) > 1:
            # On the title's line, so that it covers no data.
            ax.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0.2, handlelength=1)
    _log_y(axes[0])
    axes[0].set_xlim(0, 0.5)
    axes[0].set_xticks([0, 0.25, 0.5], labels=["0", "0.25", "0.5"])
    axes[0].set_ylabel("Mean |F| (log scale)")
    heading = f"Channel spectrum, {_name(profile)}" if title is None else title
    figure.suptitle(heading, fontsize=10, x=0.01, ha="left")
    mirror = "Dot: k = 0, the mean over channels. The mirror half, k / C above 0.5, is left out."
    _footer(figure, [mirror, *_notes(profile)])
    return figure


@style.context(_STYLE)
def entropy_heatmap(students: Sequence[Profile]) -> Figure:
    """Entropy (bits) as colour: epochs from left to right, one column each, blocks from bottom to top.

    Columns are equally wide whatever the distance of their epochs. Raises as `entropy_evolution`.
    """
    students = _ordered(students)
    figure = Figure(figsize=(5.5, 3.6), layout="constrained")
    _draw_heatmap(figure.subplots(), students)
    _footer(figure, _notes(*students, bands=False))
    return figure


@style.context(_STYLE)
def overview(
    students: Sequence[Profile],
    teacher: Profile | None = None,
    best: Profile | None = None,
    title: str | None = None,
) -> Figure:
    """One wide picture of a run: entropy and magnitude by block, epoch by epoch, and the entropy heat map.

    Legible when shown 800 pixels wide. Raises as `entropy_evolution`.
    """
    students = _ordered(students, best)
    figure = Figure(figsize=(9.6, 3.9), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    _draw_evolution(left, students, teacher, best, "entropy")
    _draw_evolution(middle, students, teacher, best, "magnitude")
    _epoch_bar([left, middle], students)
    _draw_heatmap(right, students, most=7)
    if left.child_axes:  # the teacher's axis has moved their titles up
        right.set_title(right.get_title("left"), pad=32)
    _footer(figure, _notes(*students, teacher, best), left)
    if title is not None:
        figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    return figure


@style.context(_STYLE)
def training_curves(rows: Sequence[Mapping[str, float]]) -> Figure:
    """Losses and top-1 against epoch, the teacher's top-1 dashed: rows of metrics.csv, metric name to value.

    Terms are those of `train/loss_*`, unweighted, and `val/loss`; what a row lacks is not drawn there.
    The axis of the losses is logarithmic where they span more than a factor of 30.

    Raises `ValueError` where no row holds a loss or an accuracy.
    """
    terms = {name for row in rows for name in row if name.startswith("train/loss_")}
    first = [name for name in ("train/loss_ce", "train/loss_kd") if name in terms]
    curves = {name: _by_epoch(rows, name) for name in [*first, *sorted(terms - {*first}), "val/loss"]}
    accuracy = _by_epoch(rows, "val/acc1")
    if not any(epochs.size for epochs, _ in [*curves.values(), accuracy]):
        raise ValueError("no training to draw: no row has train/loss_*, val/loss or val/acc1")

    figure = Figure(figsize=(6.4, 5), layout="constrained")
    losses, top1 = figure.subplots(2, 1, sharex=True)
    for (name, curve), colour in zip(curves.items(), cycle(_TERMS), strict=False):
        _draw_metric(losses, *curve, "0.15" if name == "val/loss" else colour, name)
    _draw_metric(top1, *accuracy, _PAIR[0], "val/acc1")
    _, teacher = _by_epoch(rows, "teacher/acc1")
    if teacher.size:
        top1.axhline(teacher[0], color="0.15", linestyle="--", linewidth=1.5, label="teacher/acc1")
    for ax, heading, unit in ((losses, "Losses", "Loss"), (top1, "Top-1 accuracy", "Top-1 (%)")):
        values = np.concatenate([np.asarray(line.get_ydata(), float) for line in ax.lines] or [np.empty(0)])
        values = values[np.isfinite(values)]
        if values.size == 0:
            ax.text(0.5, 0.5, "not measured", transform=ax.transAxes, ha="center", color="0.4")
            ax.set_yticks([])
        else:
            ax.legend(loc="upper left", bbox_to_anchor=(1, 1))  # beside the axes, where it covers no data
        if ax is losses and values.size and 0 < values.min() < values.max() / 30:
            _log_y(ax)
            unit += " (log scale)"
        ax.set_ylabel(unit)
        ax.set_title(f"{heading} by epoch")
    top1.set_xlabel("Epoch")
    top1.xaxis.set_major_locator(MaxNLocator(integer=True))
    _footer(figure, ["Losses are unweighted; train/*: means over the epoch, val/loss: plain cross-entropy."])
    return figure


def of_run(
    students: Sequence[Profile], teacher: Profile | None = None, best: Profile | None = None
) -> dict[str, Figure]:
    """The figures of one run's student by name, those for which there is something to draw.

    Raises as `entropy_evolution`, but for a lack of students.
    """
    if not students:
        return {}
    drawn = {
        "entropy_evolution": entropy_evolution(students, teacher, best),
        "magnitude_evolution": magnitude_evolution(students, teacher, best),
        "entropy_heatmap": entropy_heatmap(students),
    }
    with suppress(UserError):  # a dead student has no spectrum, and all else to show
        drawn["student_spectra"] = spectra(best or _ordered(students)[-1])
    return drawn


def _by_epoch(rows: Sequence[Mapping[str, float]], name: str) -> tuple[FloatArray, FloatArray]:
    """Epochs and values of one metric; an infinite value is NaN."""
    points = [(row["epoch"], row[name]) for row in rows if name in row]
    epochs, values = np.array(points, dtype=float).reshape(-1, 2).T
    return epochs, np.where(np.isfinite(values), values, np.nan)


def _draw_metric(ax: Axes, epochs: FloatArray, values: FloatArray, colour: str, name: str) -> None:
    if epochs.size:
        marker = "." if len(epochs) <= 60 else ""  # more of them run together
        label = name.replace("$", r"\$")  # a term may have any name, and $ opens a formula
        ax.plot(epochs, values, color=colour, linewidth=1.5, marker=marker, markersize=4, label=label)


def _evolution(
    students: Sequence[Profile], teacher: Profile | None, best: Profile | None, measure: str
) -> Figure:
    students = _ordered(students, best)
    figure = Figure(figsize=(5.5, 4), layout="constrained")
    ax = figure.subplots()
    _draw_evolution(ax, students, teacher, best, measure)
    _epoch_bar([ax], students)
    _footer(figure, _notes(*students, teacher, best, bins=measure == "entropy"), ax)
    return figure


def _draw_evolution(
    ax: Axes, students: list[Profile], teacher: Profile | None, best: Profile | None, measure: str
) -> None:
    heading, unit = _MEASURES[measure]
    word, blocks = _word(students[0]), np.arange(1.0, len(students[0].layers) + 1)
    for profile, colour in zip(students, _epoch_colours(len(students)), strict=True):
        label = _name(profile) if len(students) == 1 else ""
        _curve(ax, blocks, profile, measure, color=colour, label=label, marker=".", markersize=4)
    if best is not None:
        label = "Best checkpoint" + ("" if best.epoch is None else f" (epoch {best.epoch})")
        # Thinner, so that the epoch it equals shows behind it.
        look: dict[str, Any] = {"marker": "o", "markersize": 4, "mfc": "white", "linewidth": 1}
        _curve(ax, blocks, best, measure, color=_BEST, label=label, **look)
    if teacher is not None:
        # First block on first and last on last, as layer pairs are counted from either end.
        places = np.linspace(1, len(blocks), len(teacher.layers))
        _curve(ax, places, teacher, measure, color="0.15", label=f"Teacher ({teacher.model})", ls="--")
        if len(places) != len(blocks):
            top = ax.secondary_xaxis("top")
            _ticks(top.xaxis, places, _labels(teacher), most=8)
            top.set_xlabel(f"Teacher {_word(teacher)} (matched depth)")
            top.spines["top"].set_visible(True)

    values = np.concatenate([np.asarray(line.get_ydata()) for line in ax.lines])
    values = values[np.isfinite(values)]
    if values.size == 0:
        ax.text(0.5, 0.5, "not measured", transform=ax.transAxes, ha="center", color="0.4")
        ax.set_yticks([])
    elif measure == "magnitude" and 0 < values.min() < values.max() / 30:
        _log_y(ax)
        unit += " (log scale)"
    _ticks(ax.xaxis, blocks, _labels(students[0]))
    if word == "layer" and sum(map(len, students[0].layers)) > 32:
        ax.tick_params("x", labelrotation=30)
    ax.set_xlabel(word.capitalize())
    ax.set_ylabel(unit)
    ax.set_title(f"{heading} by {word}")


def _curve(ax: Axes, x: FloatArray, profile: Profile, measure: str, color: Any, **look: Any) -> None:
    y, error = getattr(profile, measure), getattr(profile, f"{measure}_se")
    ax.plot(x, y, color=color, **{"linewidth": 1.5, **look})
    _band(ax, x, y, error, color)


def _band(ax: Axes, x: FloatArray, y: FloatArray, error: FloatArray, color: Any) -> None:
    if np.isfinite(error).any():  # NaN for a single image
        ax.fill_between(x, y - error, y + error, color=color, alpha=0.18, linewidth=0)


def _draw_spectrum(ax: Axes, profile: Profile, row: int, color: str, label: str) -> None:
    channels = len(profile.spectrum[row])
    half = slice(channels // 2 + 1)
    x, y = np.arange(channels)[half] / channels, profile.spectrum[row][half]
    y = np.where(y > 0, y, np.nan)  # a dead layer has no place on a log axis
    ax.plot(x[:1], y[:1], color=color, marker="o", markersize=4, linestyle="none", clip_on=False)
    ax.plot(x[1:], y[1:], color=color, label=label, linewidth=1)
    _band(ax, x[1:], y[1:], profile.spectrum_se[row][half][1:], color)


def _draw_heatmap(ax: Axes, students: list[Profile], most: int = 12) -> None:
    word, columns = _word(students[0]), np.arange(0.0, len(students))
    blocks = np.arange(1.0, len(students[0].layers) + 1)
    image = ax.imshow(
        np.stack([profile.entropy for profile in students], axis=1),
        cmap="magma",
        aspect="auto",
        origin="lower",
        interpolation="nearest",
        extent=(-0.5, len(columns) - 0.5, 0.5, len(blocks) + 0.5),
    )
    bar = ax.figure.colorbar(image, ax=ax, label="Entropy (bits)")
    bar.outline.set_visible(False)
    _ticks(ax.xaxis, columns, _epochs(students), most)
    _ticks(ax.yaxis, blocks, _labels(students[0]))
    ax.grid(False)
    ax.set_xlabel("Epoch")
    ax.set_ylabel(word.capitalize())
    ax.set_title(f"Entropy by {word} and epoch")


def _epoch_colours(count: int) -> FloatArray:
    """[count, 4] from light green (first epoch) to dark violet; viridis's yellow is lost on white."""
    return mpl.colormaps["viridis"](np.linspace(0.8, 0.0, count) if count > 1 else [0.0])


def _epoch_bar(axes: list[Axes], students: list[Profile]) -> None:
    """One swatch an epoch, so that epochs close together are as easy to tell apart as distant ones."""
    count = len(students)
    if count == 1:
        return  # the legend names it
    swatches = BoundaryNorm(np.arange(count + 1) - 0.5, count), ListedColormap(_epoch_colours(count))
    colours = ScalarMappable(*swatches)
    bar = axes[0].figure.colorbar(colours, ax=axes, label="Epoch", aspect=30, pad=0.02)
    _ticks(bar.ax.yaxis, np.arange(0.0, count), _epochs(students))
    bar.ax.tick_params(length=0)
    bar.ax.minorticks_off()
    bar.outline.set_visible(False)


def _notes(*profiles: Profile | None, bands: bool = True, bins: bool = True) -> list[str]:
    """What a reader must know before comparing the curves of these Profiles."""
    drawn = [profile for profile in profiles if profile is not None]
    notes = []
    if bands and any(len(profile.entropy_images) > 1 for profile in drawn):
        notes.append("Bands: ± standard error over images.")
    if bins and len(drawn) > 1:
        modes = {profile.range_mode for profile in drawn}
        notes += [note for mode, note in _BIN_NOTES.items() if mode in modes]
    return notes


def _footer(figure: Figure, notes: list[str], legend_of: Axes | None = None) -> None:
    """A legend below all axes, where it covers no data, and below it what a reader must know."""
    inch = 1 / figure.get_figheight()
    room = (0.08 + 0.13 * len(notes)) * inch if notes else 0.0
    figure.text(0.01, 0.05 * inch, "\n".join(notes), fontsize=7.5, color="0.35", va="bottom")
    handles, labels = legend_of.get_legend_handles_labels() if legend_of else ([], [])
    if handles:
        # One row if it fits (a character is about 0.06 inch wide), else one below the other.
        fits = sum(len(label) + 8 for label in labels) < figure.get_figwidth() / 0.06
        place: dict[str, Any] = {"loc": "lower center", "bbox_to_anchor": (0.5, room)}
        figure.legend(handles, labels, **place, ncols=len(labels) if fits else 1, handlelength=2.5)
        room += (0.1 + 0.17 * (1 if fits else len(labels))) * inch
    # The layout engine makes no room for these by itself.
    figure.set_layout_engine("constrained", rect=(0, room, 1, 1 - room))


def _log_y(ax: Axes) -> None:
    """A log axis with plain numbers, at 1, 2 and 5 where they are fewer than three decades."""
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 1000 else (1,)))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter(NullFormatter())


def _ticks(axis: Axis, places: FloatArray, labels: list[str], most: int = 12) -> None:
    """At most about `most` of the labels, evenly spaced, always the first and the last."""
    last = len(labels) - 1
    step = max(1, math.ceil(last / (most - 1)))
    shown = [row for row in range(0, last, step) if row == 0 or last - row > step / 2]
    if shown[-1:] != [last]:
        shown.append(last)
    axis.set_ticks(places[shown], labels=[labels[row] for row in shown])


def _labels(profile: Profile) -> list[str]:
    """What each layer is called on an axis: its block number, or its name in a network of few stages."""
    blocks = [re.fullmatch(r"blocks\.(\d+)", name) for name in profile.layers]
    if all(blocks):  # the name has the number also where only some blocks were measured
        return [str(int(block[1]) + 1) for block in blocks if block]
    if _word(profile) == "layer":
        return profile.layers
    return [str(row + 1) for row in range(len(profile.layers))]


def _word(profile: Profile) -> str:
    named = len(profile.layers) <= 6 and not any(name.startswith("blocks") for name in profile.layers)
    return "layer" if named else "block"


def _epochs(students: list[Profile]) -> list[str]:
    return ["–" if profile.epoch is None else str(profile.epoch) for profile in students]


def _name(profile: Profile) -> str:
    return profile.model if profile.epoch is None else f"{profile.model}, epoch {profile.epoch}"


def _ordered(students: Sequence[Profile], best: Profile | None = None) -> list[Profile]:
    """The students by epoch, once it is certain that they can share one picture."""
    if not students:
        raise ValueError("no Profiles to draw: students is empty")
    first = students[0]
    for other in [*students[1:], *([best] if best else [])]:
        if len(other.layers) != len(first.layers):
            raise UserError(
                f"Profiles of different depth cannot share a figure: {_name(first)} has "
                f"{len(first.layers)} layers, {_name(other)} has {len(other.layers)}"
            )
    epochs = [profile.epoch for profile in students]
    if len(students) > 1 and (None in epochs or len(set(epochs)) < len(epochs)):
        raise UserError(f"each student Profile must be of an epoch of its own, got epochs {epochs}")
    return sorted(students, key=lambda profile: profile.epoch or 0)
