"""`analyze --student_width`: how much of each block of a teacher a student of so many channels can hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from distill_dynamics.analysis.tables import Curve
from distill_dynamics.dynamics.profile import Profile
from distill_dynamics.errors import UserError
from distill_dynamics.figures.floors import FLOORS
from distill_dynamics.figures.style import layer_labels, places, word
from distill_dynamics.models.backbone import Backbone
from distill_dynamics.tables import aligned
from distill_dynamics.text import number

_ACROSS = 4
"""Widths beside each other: the table is at most 80 columns wide."""


def check_images(widths: Sequence[int], n_images: int) -> None:
    """UserError for a width that is none, and where there are no two halves of the images."""
    for width in widths:
        if width < 1:
            raise UserError(f"--student_width: a student has 1 channel or more, not {width}")
    if widths and n_images < 2:
        raise UserError("--student_width needs 2 images or more: components of one half, shown the other")


def check_widths(widths: Sequence[int], backbone: Backbone, layers: Sequence[int]) -> None:
    """UserError for a student that is wider than every one of these layers of a model, numbered from 1."""
    widest = max(backbone.channels[number - 1] for number in layers)
    for width in widths:
        if width > widest:
            raise UserError(
                f"--student_width: {width} is above the {widest} channels of {backbone.name}, whose blocks a "
                f"student that wide holds whole; give {widest} or fewer"
            )


def once(curves: Sequence[Curve], latest: bool = False) -> list[Curve]:
    """Each model and its weights once, as no range of bins concerns floors; or each model's last weights."""
    return list({curve.label if latest else curve.name: curve for curve in curves}.values())


def floor_rows(curve: Curve) -> Iterator[dict[str, Any]]:
    """Rows of floors.csv: the floors of each block at each width."""
    for profile in (curve.profile, *curve.further):
        for row, layer in enumerate(profile.layers):
            yield {
                **{name: curve.facts[name] for name in ("label", "epoch", "best")},
                "images": len(profile.entropy_images),
                "student_width": profile.student_width,
                "block": profile.blocks[row],
                "layer": layer,
                "channels": len(profile.spectrum[row]),
                **{one.name: profile.curve(one.name)[row] for one in FLOORS},
            }


def printed_floors(curve: Curve) -> str:
    """The floors of one model for a terminal, and what they say in a sentence a width."""
    first, profiles = curve.profile, [curve.profile, *curve.further]
    lines = [
        f"{curve.name}: share of the token variance that a student cannot hold",
        "(capacity floor; in brackets the correlation floor, of standardised channels)",
    ]
    for some in (profiles[start : start + _ACROSS] for start in range(0, len(profiles), _ACROSS)):
        rows = [(word(first), *(f"{profile.student_width} channels" for profile in some))]
        cells = [
            [
                f"{number(capacity, 3)} ({number(correlation, 3)})"
                for capacity, correlation in zip(*(p.curve(one.name) for one in FLOORS), strict=True)
            ]
            for p in some
        ]
        rows += zip(layer_labels(first), *cells, strict=True)
        lines += ["", *aligned(rows)]
    return "\n".join(f"  {line}".rstrip() for line in [*lines, "", *sentences(profiles)])


def sentences(profiles: Sequence[Profile]) -> list[str]:
    """What each width can hold of the block that it holds most of, and of the one that it holds least of."""
    said = []
    for profile in profiles:
        floor = profile.curve("capacity_floor")
        names = [place.removeprefix("layer ") for place in places(profile)]
        if unknown := [name for name, value in zip(names, floor, strict=True) if not np.isfinite(value)]:
            said.append(
                f"{profile.student_width} channels: not known of {', '.join(unknown)}, of which half of the "
                "images has too few tokens; give more images."
            )
        if np.isfinite(floor).any():
            most, least = int(np.nanargmin(floor)), int(np.nanargmax(floor))
            said.append(
                f"{profile.student_width} channels can hold {1 - floor[most]:.1%} of the token variance of "
                f"{names[most]} and, least, {1 - floor[least]:.1%} of {names[least]}."
            )
    return said
