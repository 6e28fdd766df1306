"""Panels of what changes over epochs, a line a run."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from distill_dynamics.dynamics.profile import FloatArray
from distill_dynamics.figures.curves import Curve, draw_runs
from distill_dynamics.figures.style import LineStyle, grid_of


class Panel(NamedTuple):
    """What one of them shows."""

    title: str
    y: str
    """Label of its axis."""
    runs: Mapping[str, Curve]


def draw_panels(
    panels: Sequence[Panel], styles: Mapping[str, LineStyle], height: float
) -> tuple[Figure, list[Axes], dict[str, Line2D]]:
    """Panels over epochs, and the lines of a legend for all of them."""
    figure, axes = grid_of(len(panels), width=2.6, height=height)
    legend: dict[str, Line2D] = {}
    for ax, panel in zip(axes, panels, strict=True):
        many = [name for name, curve in panel.runs.items() if len(curve.x) > 60]  # more markers run together
        legend |= draw_runs(ax, panel.runs, {**styles, **{n: {**styles[n], "marker": ""} for n in many}})
        ax.set_title(panel.title, fontsize=9)
        ax.set_ylabel(panel.y)
        ax.set_xlabel("Epoch")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, min_n_ticks=1))  # one epoch, one tick
    return figure, axes, legend


def epoch_names(epochs: FloatArray) -> list[str]:
    """What the points of a curve are called."""
    return [f"epoch {epoch:g}" for epoch in epochs]
