"""Layers as colour: entropy, block × epoch, and statistics of pairs, student's block × teacher's block."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from distill_dynamics.dynamics.profile import FloatArray, Profile
from distill_dynamics.dynamics.statistics import statistic
from distill_dynamics.figures.order import ordered
from distill_dynamics.figures.style import (
    STYLE,
    block_places,
    epoch_labels,
    footer,
    grid_of,
    layer_labels,
    not_measured,
    notes,
    places,
    ticks,
    word,
    wrapped,
)


class Grid(NamedTuple):
    """What a heat map is drawn of."""

    rows: Sequence[str]
    columns: Sequence[str]
    values: FloatArray


@style.context(STYLE)
def entropy_heatmap(runs: Mapping[str, Sequence[Profile]]) -> Figure:
    """Entropy (bits) as colour: epochs from left to right, one column each, blocks from bottom to top.

    Takes the students of each run by its name: a panel a run, with one colour scale for all. Columns are
    equally wide whatever the distance of their epochs.

    Raises `ValueError` where no run has a student; `UserError` as `curve_evolution`, within one run.
    """
    trained = {name: ordered(students) for name, students in runs.items() if students}
    if not trained:
        raise ValueError("no Profiles to draw: no run has a student in training")
    everything = [profile for students in trained.values() for profile in students]
    scale = _scale([profile.entropy for profile in everything])
    figure, axes = grid_of(len(trained), width=2.3, height=2.9 if len(trained) > 1 else 3.9)
    for ax, (name, students) in zip(axes, trained.items(), strict=True):
        image = draw_heatmap(ax, students, most=7 if len(trained) > 1 else 12, scale=scale)
        ax.set_title(wrapped(name), fontsize=9)
        if scale is None:
            not_measured(ax)
        if not ax.get_subplotspec().is_first_col():  # type: ignore[union-attr]
            ax.set_ylabel("")
    figure.colorbar(image, ax=axes, label="Entropy (bits)").outline.set_visible(False)
    footer(figure, notes(*everything, bands=False))
    return figure


def draw_heatmap(
    ax: Axes, students: list[Profile], most: int = 12, scale: Normalize | None = None
) -> AxesImage:
    """The entropy of one run in one panel; `most` labels on each axis."""
    values = np.stack([profile.entropy for profile in students], axis=1)
    labels = epoch_labels([profile.epoch for profile in students])
    image = _draw(ax, values, students[0], most, scale, [f"epoch {label}" for label in labels])
    ticks(ax.xaxis, np.arange(1.0, len(students) + 1), labels, most)
    ax.set_xlabel("Epoch")
    ax.set_ylabel(word(students[0]).capitalize())
    ax.set_title(f"Entropy by {word(students[0])} and epoch")
    return image


@style.context(STYLE)
def pair_heatmap(name: str, profiles: Mapping[str, Profile], teacher: Profile | None = None) -> Figure:
    """A statistic of pairs, such as "cka", as colour: teacher's blocks to the right, student's upwards.

    A panel a Profile by its name, with one colour scale for all. The line is where the curve of the
    statistic is read: layers at equal depth. `teacher` names the teacher's layers.

    Raises `ValueError` where no Profile has the statistic.
    """
    known = {title: profile for title, profile in profiles.items() if profile.known(name)}
    if not known:
        raise ValueError(f"no Profiles to draw: none has {name}")
    scale = _scale([profile.pairs[name].ravel() for profile in known.values()])
    figure, axes = grid_of(len(known), width=2.3, height=2.7 if len(known) > 1 else 3.9)
    for ax, (title, profile) in zip(axes, known.items(), strict=True):
        rows, columns = profile.pairs[name].shape
        same = teacher is not None and len(teacher.layers) == columns
        labels = layer_labels(teacher) if teacher and same else [str(n + 1) for n in range(columns)]
        image = _draw(ax, profile.pairs[name], profile, 7, scale, [f"teacher's {label}" for label in labels])
        ax.plot([1, columns], [1, rows], color="white", linewidth=0.8, linestyle=(0, (4, 3)))
        ticks(ax.xaxis, np.arange(1.0, columns + 1), labels, most=7)
        ax.set_title(wrapped(title), fontsize=9)
        ax.set_xlabel(f"Teacher's {word(teacher) if teacher and same else 'block'}")
        if ax.get_subplotspec().is_first_col():  # type: ignore[union-attr]
            ax.set_ylabel(f"Student's {word(profile)}")
    figure.colorbar(image, ax=axes, label=statistic(name).axis).outline.set_visible(False)
    footer(figure, ["Dashed: layers at equal depth, of which the curves are."])
    return figure


def _scale(values: Sequence[FloatArray]) -> Normalize | None:
    """One colour scale for all of these; None where nothing is known."""
    everything = np.concatenate(values)
    known = everything[np.isfinite(everything)]
    return Normalize(known.min(), known.max()) if known.size else None


def grids(axes: Sequence[Axes]) -> list[tuple[Axes, Grid]]:
    """The numbers of every heat map in these panels."""
    images = [(ax, image) for ax in axes for image in ax.images]
    return [(ax, grid) for ax, image in images if isinstance(grid := getattr(image, "grid", None), Grid)]


def _draw(
    ax: Axes,
    values: FloatArray,
    profile: Profile,
    most: int,
    scale: Normalize | None,
    columns_named: Sequence[str],
) -> AxesImage:
    """Rows from bottom to top, one a layer of the Profile; both axes count from 1."""
    rows, columns = values.shape
    image = ax.imshow(
        values,
        cmap="magma",
        norm=scale,
        aspect="auto",
        origin="lower",
        interpolation="nearest",
        extent=(0.5, columns + 0.5, 0.5, rows + 0.5),
    )
    image.grid = Grid(places(profile), columns_named, values)  # type: ignore[attr-defined]
    ticks(ax.yaxis, block_places(profile), layer_labels(profile), most)
    ax.grid(False)
    return image
