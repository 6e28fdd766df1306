"""A matplotlib Figure as an `<svg>` element for an HTML page, and where its curves lie."""

import io
import re
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from distill_dynamics.dynamics.profile import FloatArray
from distill_dynamics.figures.curves import CurveLine, curves
from distill_dynamics.figures.heatmaps import grids
from distill_dynamics.figures.style import TITLE

# Text as outlines: it looks the same without the font. A fixed salt: equal figures give equal text.
_STYLE: list[Any] = ["default", {"svg.fonttype": "path", "svg.hashsalt": "distill_dynamics"}]
_UNKNOWN = np.array(np.nan)
_NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))


@dataclass(frozen=True)
class Drawing:
    """A figure for a page."""

    svg: str
    """One `<svg>` element."""
    width: float
    """In points, 1/72 inch: the svg's own units."""
    curves: list[dict[str, Any]]
    """One a curve, ready for JSON: what `CurveMeta` holds, `label`, title of its `panel`, `ids` of its
    elements, and `points`: [x, y, name, value as text] each, x and y in the svg's units."""
    grids: list[dict[str, Any]]
    """One a heat map: title of its `panel`, names of its `rows` and `columns`, `values` as text by row."""


def draw(figure: Figure, name: str) -> Drawing:
    """The figure as an `<svg>` element without metadata; equal figures give equal text.

    `name` stands before each of its ids, which are then unique in a page whose names are. Pictures in it
    (a heat map) are data: URLs. It has no background, and no title of the whole: the page has both.
    """
    for title in figure.findobj(lambda artist: artist.get_gid() == TITLE):
        title.set(visible=False, in_layout=False)
    lines = curves(figure.axes)
    for number, line in enumerate(lines):
        for part, artist in enumerate([line, *line.companions]):
            artist.set_gid(f"curve-{number}-{part}")  # becomes the element's id
    buffer = io.StringIO()
    with style.context(_STYLE):
        figure.savefig(buffer, format="svg", dpi=200, metadata=_NO_METADATA, transparent=True)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg ") :]  # HTML has no place for an XML declaration
    # Comments repeat the text of labels; the style sheet would hold for the whole page.
    svg = re.sub(r"<!--.*?-->\s*|<style.*?</style>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r' d="M[^"]*"', _shorter, svg)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    # After savefig: the layout is that of the svg.
    described = [_described(figure, line, f"{name}-curve-{number}") for number, line in enumerate(lines)]
    maps = [
        {
            "panel": _panel(ax),
            "rows": grid.rows,
            "columns": grid.columns,
            "values": [[value_text(value, _UNKNOWN) for value in row] for row in grid.values],
        }
        for ax, grid in grids(figure.axes)
    ]
    return Drawing(svg, figure.get_figwidth() * 72, described, maps)


def value_text(value: float, error: FloatArray) -> str:
    """A value with five significant digits; ± its error with two, or the ends of its interval, if known."""
    if not np.isfinite(value):
        return "not measured"
    if not np.isfinite(error).all() or not np.any(error):
        return f"{value:.5g}"
    return (
        f"{value:.5g} ± {error:.2g}" if error.ndim == 0 else f"{value:.5g} ({error[0]:.5g} to {error[1]:.5g})"
    )


def _described(figure: Figure, line: CurveLine, name: str) -> dict[str, Any]:
    """A curve as numbers and words, its points without those that are not drawn."""
    axes = cast(Axes, line.axes)
    xy = np.asarray(line.get_xydata(), dtype=float)
    # In fractions of the figure, which do not depend on its resolution; y from above, as in an svg.
    fractions = axes.transData.transform(xy) / figure.bbox.size
    places = np.column_stack([fractions[:, 0], 1 - fractions[:, 1]]) * figure.get_size_inches() * 72
    points = [
        [round(float(x), 1), round(float(y), 1), point, value_text(value, error)]
        for (x, y), point, value, error in zip(places, line.points, xy[:, 1], line.error.T, strict=True)
        if np.isfinite(value)
    ]
    parts = range(1 + len(line.companions))
    return {
        **asdict(line.meta),
        "label": line.meta.label,
        "ids": [f"{name}-{part}" for part in parts],
        "panel": _panel(axes),
        "points": points,
    }


def _panel(axes: Axes) -> str:
    return axes.get_title("left").replace(r"\$", "$").replace("\n", " ")


def _shorter(path: re.Match[str]) -> str:
    """A path's numbers with two decimals: a hundredth of a point is not seen."""
    return re.sub(r"(\.\d\d)\d+", r"\1", path[0])
