"""Curves by block of several models or runs, one line each (the paper's Figures 1 and 2)."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from distill_dynamics.dynamics.profile import FloatArray, Profile
from distill_dynamics.dynamics.statistics import Statistic, statistic
from distill_dynamics.figures.curves import (
    Shows,
    curve_notes,
    draw_profile,
    draw_runs,
    label_y,
    mean_notes,
    profile_curve,
)
from distill_dynamics.figures.look import (
    STYLE,
    TEACHER,
    Looks,
    finite,
    footer,
    grid_of,
    layer_labels,
    notes,
    run_looks,
    ticks,
    word,
    wrapped,
)

_RANGES = {
    "global": "one range for all layers",
    "layer": "each layer's own range",
    "scaled": "layers divided by their magnitude",
}


@style.context(STYLE)
def curve_by_block(
    name: str,
    profiles: Mapping[str, Profile],
    teachers: Sequence[Profile] = (),
    looks: Looks | None = None,
    bootstrap: bool = False,
) -> Figure:
    """The paper's Figures 1 and 2: a curve such as "entropy" against block, one line a model or run, by name.

    Teachers are dark and dash-dotted. Where depths differ, x is the relative depth: 0 the first block, 1 the
    last. Bands are ± one standard error over images, or with `bootstrap` 95 % intervals. `looks` are those of
    `run_looks`, of these names and others. The axis of the magnitude is logarithmic where the values span
    more than a factor of 30. Raises `ValueError` where there is no Profile.
    """
    everything = [*profiles.values(), *teachers]
    if not everything:
        raise ValueError("no Profiles to draw: profiles is empty")
    curve = statistic(name)
    figure = Figure(figsize=(4.6, 4), layout="constrained")
    ax = figure.subplots()
    x_of = _Depth(everything)
    legend = _draw(ax, profiles, looks or run_looks([*profiles]), bootstrap, x_of, curve)
    for teacher in teachers:
        shows = Shows("teacher")
        legend[f"Teacher ({teacher.model})"] = draw_profile(
            ax, x_of(teacher), teacher, curve, shows, bootstrap, **TEACHER
        )
    ax.set_title(f"{curve.heading or curve.title} by {x_of.name.lower() if x_of.same else 'depth'}")
    said = curve_notes(*everything, curve=curve, bootstrap=bootstrap)
    footer(figure, [*said, *mean_notes([ax])], legend)
    return figure


@style.context(STYLE)
def entropy_by_range(
    ranges: Mapping[str, Mapping[str, Profile]], looks: Looks | None = None, bootstrap: bool = False
) -> Figure:
    """The same models' entropy (bits) counted in several value ranges, a panel each, and their magnitude.

    Takes the Profiles by range ("global", "layer", "scaled", "0,1") and by name. The panels have y
    axes of their own: it is the shapes that can be compared. Magnitude does not depend on the range. Bands
    and looks as in `curve_by_block`.

    Raises `ValueError` where there is no Profile.
    """
    everything = [profile for profiles in ranges.values() for profile in profiles.values()]
    names = dict.fromkeys(name for profiles in ranges.values() for name in profiles)
    if not everything:
        raise ValueError("no Profiles to draw: ranges is empty")
    looks, x_of = looks or run_looks([*names]), _Depth(everything)
    figure, axes = grid_of(len(ranges) + 1, width=2.9, height=3.3)
    legend: dict[str, Line2D] = {}
    for ax, (mode, profiles) in zip(axes, ranges.items(), strict=False):
        legend |= _draw(ax, profiles, looks, bootstrap, x_of, statistic("entropy"))
        ax.set_title(wrapped(f"Entropy, {_RANGES.get(mode, f'range {mode}')}"), fontsize=9)
    magnitude = statistic("magnitude")
    measured = {name: profile for profiles in ranges.values() for name, profile in profiles.items()}
    _draw(axes[-1], measured, looks, bootstrap, x_of, magnitude)
    axes[-1].set_title(magnitude.heading, fontsize=9)
    said = [
        *notes(*everything, bins=False, bootstrap=bootstrap),
        *mean_notes(axes),
        "Each panel has its own y axis: compare shapes, not heights.",
    ]
    footer(figure, said, legend)
    return figure


class _Depth:
    """The x axis for several models: blocks where all have the same number of them, else relative depth."""

    def __init__(self, profiles: Sequence[Profile]) -> None:
        first = profiles[0]
        self.depths = {len(profile.layers) for profile in profiles}
        self.labels = layer_labels(first)
        self.same = len({tuple(layer_labels(profile)) for profile in profiles}) == 1
        self.name = word(first).capitalize()

    def __call__(self, profile: Profile) -> FloatArray:
        count = len(profile.layers)
        return np.arange(1.0, count + 1) if self.same else np.linspace(0, 1, count)

    def label(self, ax: Axes) -> None:
        if self.same:
            ticks(ax.xaxis, np.arange(1.0, len(self.labels) + 1), self.labels)
            ax.set_xlabel(self.name)
        else:
            ax.set_xlabel("Relative depth (0: first layer, 1: last)")


def _draw(
    ax: Axes,
    profiles: Mapping[str, Profile],
    looks: Looks,
    bootstrap: bool,
    x_of: _Depth,
    curve: Statistic,
) -> dict[str, Line2D]:
    runs = {
        name: profile_curve(x_of(profile), profile, curve, Shows("run", run=name), bootstrap)
        for name, profile in profiles.items()
    }
    lines: dict[str, Line2D] = {**draw_runs(ax, runs, looks)}
    x_of.label(ax)
    label_y([ax], curve)
    if finite(ax).size == 0:
        ax.set_yticks([])
    return lines
