"""Channel spectra of early, middle and late blocks (the paper's Figure 3)."""

from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from distill_dynamics.dynamics.profile import Profile
from distill_dynamics.errors import UserError
from distill_dynamics.figures.curves import Curve, CurveMeta, draw_curve
from distill_dynamics.figures.style import (
    OKABE_ITO,
    STYLE,
    TITLE,
    footer,
    layer_labels,
    log_y,
    named,
    notes,
    plain,
    word,
)


@style.context(STYLE)
def spectra(profile: Profile, title: str | None = None) -> Figure:
    """Channel spectrum (Eq. 2) of two early, two middle and two late blocks; of all, if fewer than six.

    x is k / C_l, so that layers of different width share an axis. The input is real, the spectrum
    symmetric: the half above 0.5 is left out. k = 0, the magnitude of the mean over channels, is a dot of
    its own: in a network with ReLU it is far above the rest. Bands are ± one standard error over images.

    Raises `UserError` where there is no spectrum above zero.
    """
    if not any((values > 0).any() for values in profile.spectrum):
        raise UserError(f"{named(profile)}: no layer has a spectrum above zero, so there is none to draw")
    depth = len(profile.layers)
    names, kind = layer_labels(profile), word(profile).capitalize()
    if depth < 6:
        panels = [(name if kind == "Layer" else f"{kind} {name}", [row]) for row, name in enumerate(names)]
    else:
        middle = depth // 2
        panels = [("Early", [0, 1]), ("Middle", [middle - 1, middle]), ("Late", [depth - 2, depth - 1])]

    # Three panels are as wide as a page of print, and on a screen two such figures stand side by side.
    figure = Figure(figsize=(max(4.6, min(2.3 * len(panels), 9.5)), 2.9), layout="constrained")
    axes = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    for ax, (heading, rows) in zip(axes, panels, strict=True):
        for row, color, dash in zip(rows, OKABE_ITO, ("-", "--"), strict=False):
            _draw(ax, profile, row, f"{kind} {names[row]}", color=color, linestyle=dash)
        ax.set_title(plain(heading, 24))
        ax.set_xlabel("Channel frequency k / C")
        if len(rows) > 1:
            # On the title's line, so that it covers no data.
            small: dict[str, Any] = {"fontsize": 7.5, "columnspacing": 0.8, "handlelength": 1.2}
            ax.legend(loc="lower right", bbox_to_anchor=(1.03, 1), ncols=2, borderaxespad=0.2, **small)
    log_y(axes[0])
    axes[0].set_xlim(0, 0.5)
    axes[0].set_xticks([0, 0.25, 0.5], labels=["0", "0.25", "0.5"])
    axes[0].set_ylabel("Mean |F| (log scale)")
    heading = f"Channel spectrum, {named(profile)}" if title is None else title
    figure.suptitle(plain(heading), fontsize=10, x=0.01, ha="left", gid=TITLE)
    mirror = "Dot: k = 0, the mean over channels. The mirror half, k / C above 0.5, is left out."
    footer(figure, [mirror, *notes(profile)])
    return figure


def _draw(ax: Axes, profile: Profile, row: int, label: str, **line_style: Any) -> None:
    channels = len(profile.spectrum[row])
    half = slice(channels // 2 + 1)
    x, y = np.arange(channels)[half] / channels, profile.spectrum[row][half]
    y = np.where(y > 0, y, np.nan)  # a dead layer has no place on a log axis
    dot = {
        "color": line_style["color"],
        "marker": "o",
        "markersize": 4,
        "linestyle": "none",
        "clip_on": False,
    }
    mean = ax.plot(x[:1], y[:1], **dot)
    points = [f"k = {k} of {channels}" for k in range(1, len(x))]
    error = profile.spectrum_se[row][half][1:]
    curve = Curve(x[1:], y[1:], CurveMeta("run", measure=label), points, error)
    line = draw_curve(ax, curve, label=plain(label, 16), **{**line_style, "linewidth": 1})
    line.companions += mean
