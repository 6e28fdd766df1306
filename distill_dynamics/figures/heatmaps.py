"""Entropy as colour, block × epoch."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from distill_dynamics.dynamics.profile import Profile
from distill_dynamics.figures.look import (
    STYLE,
    epoch_labels,
    footer,
    grid_of,
    layer_labels,
    not_measured,
    notes,
    ticks,
    word,
    wrapped,
)
from distill_dynamics.figures.order import ordered


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
    values = np.concatenate([profile.entropy for profile in everything])
    known = values[np.isfinite(values)]
    scale = Normalize(known.min(), known.max()) if known.size else None
    figure, axes = grid_of(len(trained), width=2.3, height=2.9 if len(trained) > 1 else 3.9)
    for ax, (name, students) in zip(axes, trained.items(), strict=True):
        image = draw_heatmap(ax, students, most=7 if len(trained) > 1 else 12, scale=scale)
        ax.set_title(wrapped(name), fontsize=9)
        if not known.size:
            not_measured(ax)
        if not ax.get_subplotspec().is_first_col():  # type: ignore[union-attr]
            ax.set_ylabel("")
    figure.colorbar(image, ax=axes, label="Entropy (bits)").outline.set_visible(False)
    footer(figure, notes(*everything, bands=False))
    return figure


def draw_heatmap(
    ax: Axes, students: list[Profile], most: int = 12, scale: Normalize | None = None
) -> AxesImage:
    """The heat map of one run in one panel; `most` labels on each axis."""
    name, columns = word(students[0]), np.arange(0.0, len(students))
    blocks = np.arange(1.0, len(students[0].layers) + 1)
    image = ax.imshow(
        np.stack([profile.entropy for profile in students], axis=1),
        cmap="magma",
        norm=scale,
        aspect="auto",
        origin="lower",
        interpolation="nearest",
        extent=(-0.5, len(columns) - 0.5, 0.5, len(blocks) + 0.5),
    )
    ticks(ax.xaxis, columns, epoch_labels([profile.epoch for profile in students]), most)
    ticks(ax.yaxis, blocks, layer_labels(students[0]), most)
    ax.grid(False)
    ax.set_xlabel("Epoch")
    ax.set_ylabel(name.capitalize())
    ax.set_title(f"Entropy by {name} and epoch")
    return image
