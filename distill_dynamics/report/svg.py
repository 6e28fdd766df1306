"""A matplotlib Figure as an `<svg>` element to stand in an HTML page among others."""

import io
import re
from html import escape
from typing import Any

from matplotlib import style
from matplotlib.figure import Figure

# Text as outlines: it looks the same without the font. A fixed salt: equal figures give equal text.
_STYLE: list[Any] = ["default", {"svg.fonttype": "path", "svg.hashsalt": "distill_dynamics"}]
_NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))


def inline_svg(figure: Figure, name: str, label: str) -> str:
    """The figure as one `<svg>` element without metadata; equal figures give equal text.

    `name` stands before each of its ids, which are then unique in a page whose names are; `label` is what
    a screen reader says. Pictures in it (a heat map) are data: URLs.
    """
    buffer = io.StringIO()
    with style.context(_STYLE):
        figure.savefig(buffer, format="svg", dpi=200, metadata=_NO_METADATA)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg ") :]  # HTML has no place for an XML declaration
    # Comments repeat the text of labels; the style sheet would hold for the whole page.
    svg = re.sub(r"<!--.*?-->\s*|<style.*?</style>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(label)}" ', 1)
