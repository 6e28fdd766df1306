"""How much of each block a student of few channels cannot hold: the capacity floor and those beside it."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import style
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from distill_dynamics.dynamics.profile import Profile
from distill_dynamics.dynamics.statistics import SHOWN
from distill_dynamics.figures.curves import CurveMeta, draw_curve, profile_curve
from distill_dynamics.figures.order import alike
from distill_dynamics.figures.style import (
    OKABE_ITO,
    STYLE,
    TITLE,
    block_places,
    finite,
    footer,
    label_blocks,
    layer_labels,
    not_measured,
    word,
)

FLOORS = [one for one in SHOWN if one.kind == "halves"]
_DASHES = ("-", (0, (4, 2)), (0, (1.5, 1)))


def with_floors(profiles: Sequence[tuple[str, Profile]]) -> dict[str, Profile]:
    """The Profiles that have floors, once a model and width, by name of the model and width.

    Takes them with what their models are called.
    """
    found: dict[str, Profile] = {}
    for who, profile in profiles:
        if profile.student_width is None or not any(profile.known(one.name) for one in FLOORS):
            continue
        same = [o for o in found.values() if o.student_width == profile.student_width and alike(o, profile)]
        if not same:
            name = f"{who}, {profile.student_width} channels"
            found[name if name not in found else f"{name} ({len(found) + 1})"] = profile
    return found


@style.context(STYLE)
def floors_by_block(profiles: Mapping[str, Profile]) -> Figure:
    """Share of each block's token variance that a narrow student cannot hold: a colour a model and width.

    The capacity floor is solid, the correlation floor dashed; Profiles by name, such as `with_floors` gives.
    Where depths differ, x is the relative depth. Raises `ValueError` where there is no Profile.
    """
    if not profiles:
        raise ValueError("no Profiles to draw: none has floors")
    drawn = [*profiles.values()]
    same = len({tuple(layer_labels(profile)) for profile in drawn}) == 1
    figure = Figure(figsize=(4.6, 3.9), layout="constrained")
    ax = figure.subplots()
    legend: dict[str, Line2D] = {}
    for number, (name, profile) in enumerate(profiles.items()):
        x = block_places(profile) if same else np.linspace(0, 1, len(profile.layers))
        for one, dash in zip(FLOORS, _DASHES, strict=False):
            curve = profile_curve(x, profile, one, CurveMeta("run"))
            label = f"{name}: {one.within_text}"
            curve = curve._replace(meta=CurveMeta("run", measure=label))
            colour = OKABE_ITO[number % len(OKABE_ITO)]
            legend[label] = draw_curve(ax, curve, color=colour, linestyle=dash, marker=".", markersize=4)
    if same:
        label_blocks(ax, drawn[0])
    else:
        ax.set_xlabel("Relative depth (0: first layer, 1: last)")
    if finite(ax).size:
        ax.set_ylim(bottom=0)
    else:
        ax.set_yticks([])
        not_measured(ax)
    ax.set_ylabel(FLOORS[0].axis)
    ax.set_title(f"What a narrower student cannot hold, by {word(drawn[0]) if same else 'depth'}", gid=TITLE)
    note = "Components of one half of the images, measured on the other: too high where images are few."
    footer(figure, [note], legend)
    return figure
