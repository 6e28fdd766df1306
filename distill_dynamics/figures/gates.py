"""Gates of a term's pairs of blocks, which its losses are multiplied by."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import style
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from distill_dynamics.figures.curves import Curve, CurveMeta, draw_runs, mean_notes
from distill_dynamics.figures.style import STYLE, LineStyle, footer, grid_of, plain, run_styles

Gates = Mapping[str, Sequence[tuple[int, int, float]]]
"""By term: student block, teacher block and gate of each pair."""

_MOST_PANELS = 12


@style.context(STYLE)
def gates_by_block(runs: Mapping[str, Gates], styles: Mapping[str, LineStyle] | None = None) -> Figure:
    """Each pair's gate against its teacher block: a panel a term, a line a run.

    `styles` are those of `run_styles`, of these names and others. Raises `ValueError` where no run has one.
    """
    terms = list(dict.fromkeys(term for gates in runs.values() for term in gates))[:_MOST_PANELS]
    if not terms:
        raise ValueError("no gates to draw")
    styles = styles or run_styles([*runs])
    figure, axes = grid_of(len(terms), width=3.4, height=2.6)
    legend: dict[str, Line2D] = {}
    for ax, term in zip(axes, terms, strict=True):
        drawn = {name: _curve(name, gates[term]) for name, gates in runs.items() if term in gates}
        marked = {name: {"marker": "o", "markersize": 3, **styles[name]} for name in drawn}
        legend |= draw_runs(ax, drawn, marked)
        ax.set_title(plain(term), fontsize=9)
        ax.set_xlabel("Block of the teacher")
        ax.set_ylabel("Gate")
        ax.set_ylim(bottom=0)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    notes = ["A pair has its gate's share of the term's weight. All equal: there was nothing to gate by."]
    footer(figure, [*notes, *mean_notes(axes)], legend if len(runs) > 1 else None)
    return figure


def _curve(run: str, pairs: Sequence[tuple[int, int, float]]) -> Curve:
    ordered = sorted(pairs, key=lambda pair: (pair[1], pair[0]))
    names = [f"student block {student}, teacher block {teacher}" for student, teacher, _ in ordered]
    x, y = np.array([pair[1:] for pair in ordered], dtype=float).reshape(-1, 2).T
    return Curve(x, y, CurveMeta("run", run=run, measure="gate"), names)
