"""Pairs of layers as colour: student's block × teacher's block."""

from collections.abc import Mapping

import numpy as np
from matplotlib import style
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from distill_dynamics.dynamics.profile import Profile
from distill_dynamics.dynamics.statistics import statistic
from distill_dynamics.figures.look import STYLE, footer, grid_of, layer_labels, ticks, word, wrapped


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
    everything = np.concatenate([profile.pairs[name].ravel() for profile in known.values()])
    scale = Normalize(np.nanmin(everything), np.nanmax(everything))
    figure, axes = grid_of(len(known), width=2.3, height=2.7 if len(known) > 1 else 3.9)
    for ax, (title, profile) in zip(axes, known.items(), strict=True):
        values = profile.pairs[name]
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
        ax.plot([1, columns], [1, rows], color="white", linewidth=0.8, linestyle=(0, (4, 3)))
        same = teacher is not None and len(teacher.layers) == columns
        labels = layer_labels(teacher) if teacher and same else [str(n + 1) for n in range(columns)]
        ticks(ax.xaxis, np.arange(1.0, columns + 1), labels, most=7)
        ticks(ax.yaxis, np.arange(1.0, rows + 1), layer_labels(profile), most=7)
        ax.grid(False)
        ax.set_title(wrapped(title), fontsize=9)
        ax.set_xlabel(f"Teacher's {word(teacher) if teacher and same else 'block'}")
        if ax.get_subplotspec().is_first_col():  # type: ignore[union-attr]
            ax.set_ylabel(f"Student's {word(profile)}")
    figure.colorbar(image, ax=axes, label=statistic(name).axis).outline.set_visible(False)
    footer(figure, ["Dashed: layers at equal depth, of which the curves are."])
    return figure
