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
    CurveMeta,
    curve_notes,
    draw_runs,
    draw_teacher,
    label_y,
    mean_notes,
    profile_curve,
)
from distill_dynamics.figures.style import (
    STYLE,
    TITLE,
    LineStyle,
    block_places,
    footer,
    grid_of,
    label_blocks,
    layer_labels,
    notes,
    run_styles,
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
    styles: Mapping[str, LineStyle] | None = None,
    bootstrap: bool = False,
) -> Figure:
    """The paper's Figures 1 and 2: a curve such as "entropy" against block, one line a model or run, by name.

    Teachers are dark and dash-dotted. Where depths differ, x is the relative depth: 0 the first block, 1 the
    last. Bands are ± one standard error over images, or with `bootstrap` 95 % intervals. `styles` are those
    of `run_styles`, of these names and others. The axis of the magnitude is logarithmic where the values span
    more than a factor of 30. Raises `ValueError` where there is no Profile.
    """
    everything = [*profiles.values(), *teachers]
    if not everything:
        raise ValueError("no Profiles to draw: profiles is empty")
    curve, same = statistic(name), _same_blocks(everything)
    figure = Figure(figsize=(4.6, 4), layout="constrained")
    ax = figure.subplots()
    legend = _draw(ax, profiles, styles or run_styles([*profiles]), bootstrap, same, curve, teachers)
    ax.set_title(f"{curve.heading or curve.title} by {word(everything[0]) if same else 'depth'}", gid=TITLE)
    footer(figure, [*curve_notes(*everything, curve=curve, bootstrap=bootstrap), *mean_notes([ax])], legend)
    return figure


@style.context(STYLE)
def entropy_by_range(
    ranges: Mapping[str, Mapping[str, Profile]],
    styles: Mapping[str, LineStyle] | None = None,
    bootstrap: bool = False,
) -> Figure:
    """The same models' entropy (bits) counted in several value ranges, a panel each, and their magnitude.

    Takes the Profiles by range ("global", "layer", "scaled", "0,1") and by name. The panels have y
    axes of their own: it is the shapes that can be compared. Magnitude does not depend on the range. Bands
    and styles as in `curve_by_block`.

    Raises `ValueError` where there is no Profile.
    """
    everything = [profile for profiles in ranges.values() for profile in profiles.values()]
    if not everything:
        raise ValueError("no Profiles to draw: ranges is empty")
    once = {name: profile for profiles in ranges.values() for name, profile in profiles.items()}
    styles, same = styles or run_styles([*once]), _same_blocks(everything)
    figure, axes = grid_of(len(ranges) + 1, width=2.9, height=3.3)
    legend: dict[str, Line2D] = {}
    for ax, (mode, profiles) in zip(axes, ranges.items(), strict=False):
        legend |= _draw(ax, profiles, styles, bootstrap, same, statistic("entropy"))
        ax.set_title(wrapped(f"Entropy, {_RANGES.get(mode, f'range {mode}')}"), fontsize=9)
    magnitude = statistic("magnitude")
    _draw(axes[-1], once, styles, bootstrap, same, magnitude)
    axes[-1].set_title(magnitude.heading, fontsize=9)
    sentences = notes(*everything, bins=False, bootstrap=bootstrap) + mean_notes(axes)
    footer(figure, [*sentences, "Each panel has its own y axis: compare shapes, not heights."], legend)
    return figure


def _same_blocks(profiles: Sequence[Profile]) -> bool:
    return len({tuple(layer_labels(profile)) for profile in profiles}) == 1


def _draw(
    ax: Axes,
    profiles: Mapping[str, Profile],
    styles: Mapping[str, LineStyle],
    bootstrap: bool,
    same: bool,
    curve: Statistic,
    teachers: Sequence[Profile] = (),
) -> dict[str, Line2D]:
    """One panel; x is the number of a block where all have the `same`, else the relative depth."""

    def depths(profile: Profile) -> FloatArray:
        return block_places(profile) if same else np.linspace(0, 1, len(profile.layers))

    runs = {
        name: profile_curve(depths(profile), profile, curve, CurveMeta("run", run=name), bootstrap)
        for name, profile in profiles.items()
    }
    legend: dict[str, Line2D] = {**draw_runs(ax, runs, styles)}
    for teacher in teachers:
        line = draw_teacher(ax, depths(teacher), teacher, curve, bootstrap)
        legend[f"Teacher ({teacher.model})"] = line
    if same:
        label_blocks(ax, [*profiles.values(), *teachers][0])
    else:
        ax.set_xlabel("Relative depth (0: first layer, 1: last)")
    label_y([ax], curve)
    return legend
