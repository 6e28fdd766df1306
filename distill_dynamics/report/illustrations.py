"""The figures of a report as files, and as the page shows them: SVG, what page.js reads, values as tables."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup, escape
from matplotlib import style

from distill_dynamics.files import atomic_write
from distill_dynamics.report.gallery import Picture
from distill_dynamics.report.svg import draw
from distill_dynamics.report.tables import Table

_PRINT = {"pdf.fonttype": 42}  # text stays text, as publishers ask


class Illustration(NamedTuple):
    """A figure for the page."""

    name: str
    title: str
    caption: str
    svg: Markup
    wide: bool
    grids: list[dict[str, Any]]
    """The numbers of its heat maps, whose colours no theme may change."""
    curves: list[dict[str, Any]]
    values: list[Table]


def save(pictures: Sequence[Picture], folder: Path) -> None:
    """Write each figure as NAME.png (300 dpi) and NAME.pdf (text as text); equal figures, equal files."""
    for picture in pictures:
        with style.context(["default", _PRINT]):
            with atomic_write(folder / f"{picture.name}.png") as partial:
                picture.figure.savefig(partial, format="png", dpi=300)
            with atomic_write(folder / f"{picture.name}.pdf") as partial:
                picture.figure.savefig(partial, format="pdf", metadata={"CreationDate": None})


def illustrations(pictures: Sequence[Picture]) -> list[Illustration]:
    """Draw them."""
    return [_illustration(picture) for picture in pictures]


def _illustration(picture: Picture) -> Illustration:
    drawing = draw(picture.figure, picture.name)
    curves = [{**curve, "run": curve["run"] or picture.run} for curve in drawing.curves]
    # Below 1.1 pixels a point text is too small to read: a narrow screen scrolls the figure instead.
    # Above 1.5 it is larger than the page's.
    width = f"min-width: {1.1 * drawing.width:.0f}px; max-width: {1.5 * drawing.width:.0f}px"
    attributes = f'<svg role="img" aria-label="{escape(_alternative(picture, curves))}" style="{width}" '
    svg = Markup(drawing.svg.replace("<svg ", attributes, 1))
    wide = drawing.width > 500
    values = _values(curves, picture.title)
    return Illustration(
        picture.name, picture.title, picture.caption, svg, wide, drawing.grids, curves, values
    )


def _alternative(picture: Picture, curves: Sequence[Mapping[str, Any]]) -> str:
    """What a figure shows, for who does not see it: the ends of each curve, where they are few."""
    ends = []
    for curve in curves:
        if curve["points"]:
            (*_, first, start), (*_, last, end) = curve["points"][0], curve["points"][-1]
            ends.append(f"{curve['label']}: {first} {start}, {last} {end}")
    if not ends:
        return f"{picture.title}. {picture.caption}"
    return f"{picture.title}. {'; '.join(ends) if len(ends) <= 10 else f'{len(ends)} curves'}."


def _values(curves: Sequence[Mapping[str, Any]], title: str) -> list[Table]:
    """Tables of the curves' points: curves that have the same points share one."""
    groups: dict[tuple[str, str, tuple[str, ...]], list[Mapping[str, Any]]] = {}
    for curve in curves:
        if names := tuple(name for _, _, name, _ in curve["points"]):
            groups.setdefault((curve["panel"], curve["unit"], names), []).append(curve)
    tables = []
    for (panel, unit, names), group in groups.items():
        rows = [("", *names), *((c["label"], *(value for *_, value in c["points"])) for c in group)]
        if len(names) > max(12, len(group)):  # the longer side goes down
            rows = [*zip(*rows, strict=True)]
        name = panel or title
        tables.append(Table("", f"{name} ({unit})" if unit else name, rows, "numbers values"))
    return tables


def boxes(figures: Sequence[Illustration], labels: Sequence[str]) -> dict[str, dict[str, str]]:
    """What the boxes of the page switch: by name of the box value → text; of one run alone no runs."""
    curves = [curve for figure in figures for curve in figure.curves]
    drawn = {curve["run"] for curve in curves}
    runs = [label for label in labels if label in drawn]
    epochs = sorted({curve["epoch"] for curve in curves if curve["role"] == "student"} - {None})
    roles = {"best": "best checkpoint", "teacher": "teacher"}
    return {
        "run": {label: label for label in runs} if len(runs) > 1 else {},
        "epoch": {str(epoch): str(epoch) for epoch in epochs},
        "role": {role: text for role, text in roles.items() if any(c["role"] == role for c in curves)},
    }
