"""Lines that know what they show, so that a page can switch them on and off and read values off them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from distill_dynamics.dynamics.profile import FloatArray, Profile
from distill_dynamics.dynamics.signature import bootstrap_interval
from distill_dynamics.dynamics.statistics import Statistic
from distill_dynamics.figures.look import (
    Looks,
    finite,
    in_legend,
    log_y,
    not_measured,
    notes,
    places,
    wide_span,
)

Role = Literal["student", "best", "teacher", "run"]


@dataclass(frozen=True)
class Shows:
    """What a curve is of, in words."""

    role: Role
    """Of one epoch, of the best checkpoint, of the teacher, or of the whole run."""
    run: str | None = None
    """The run's name; None where a figure has only one run, or the curve belongs to all."""
    of: tuple[str, ...] = ()
    """Of a mean the runs that it is of; `run` is then what they are called together."""
    epoch: int | None = None
    """Completed epochs."""
    measure: str = ""
    """What is on the y axis, for a reader: "entropy"."""
    unit: str = ""
    """"bits", or nothing."""

    @property
    def label(self) -> str:
        """The curve's name among others: "SoftKD, epoch 30"."""
        who = {"best": "best", "teacher": "teacher"}.get(self.role)
        epoch = None if self.epoch is None else f"epoch {self.epoch}"
        if who and epoch:
            who, epoch = f"{who} ({epoch})", None
        return ", ".join(part for part in (self.run, who, epoch) if part) or self.measure


class CurveLine(Line2D):
    """A line of an axes with its meaning: `shows`, what each point is called, and how sure it is.

    `error` is [n], a standard error or deviation, or [2, n], the ends of an interval; NaN where unknown.
    """

    def __init__(
        self,
        x: FloatArray,
        y: FloatArray,
        shows: Shows,
        points: Sequence[str],
        error: FloatArray | None = None,
        **look: Any,
    ) -> None:
        super().__init__(x, y, **look)
        self.shows = shows
        self.points = list(points)
        self.error = np.full(len(points), np.nan) if error is None else error
        self.companions: list[Artist] = []
        """Artists that come and go with the line: its band."""


class Curve(NamedTuple):
    """What a line is drawn of."""

    x: FloatArray
    y: FloatArray
    shows: Shows
    points: Sequence[str]
    error: FloatArray | None = None
    measured: tuple[str, int] | None = None
    """Images and bins, in which values must be alike to have a mean; None where they do not matter."""


THIN: dict[str, Any] = {"linewidth": 0.5, "alpha": 0.7, "marker": "", "band": False}
"""Each of several runs whose mean is drawn, too."""


def draw_curve(ax: Axes, curve: Curve, band: bool = True, **look: Any) -> CurveLine:
    """Add a line to the axes, `error` around it as a band: ± that [n], or between both ends [2, n]."""
    x, y, shows, points, error, _ = curve
    line = CurveLine(x, y, shows, points, error, **{"linewidth": 1.5, **look})
    ax.add_line(line)
    if band and np.isfinite(line.error).any():
        low, high = line.error if line.error.ndim == 2 else (y - line.error, y + line.error)
        line.companions.append(ax.fill_between(x, low, high, color=line.get_color(), alpha=0.18, linewidth=0))
    ax.autoscale_view()
    return line


def draw_runs(ax: Axes, runs: Mapping[str, Curve], looks: Looks) -> dict[str, CurveLine]:
    """Add a line a run, by name; returns for each line of the legend one to show there.

    Runs that share one (see `Looks`) are thin, and their mean is thick, if they have the same points and
    were measured alike.
    """
    groups: dict[str, list[str]] = {}
    for name in runs:
        groups.setdefault(in_legend(looks, name), []).append(name)
    legend: dict[str, CurveLine] = {}
    for label, names in groups.items():
        drawn = [runs[name] for name in names]
        averaged = len(names) > 1 and len({(*curve.points, curve.measured) for curve in drawn}) == 1
        for name, curve in zip(names, drawn, strict=True):
            look = {**looks[name], **(THIN if averaged else {})}
            legend[label] = draw_curve(ax, curve, **look)
        if averaged:
            legend[label] = draw_mean(ax, label, dict(zip(names, drawn, strict=True)), **looks[names[0]])
    return legend


def draw_mean(ax: Axes, name: str, runs: Mapping[str, Curve], **look: Any) -> CurveLine:
    """Add the mean of several runs' curves, which have the same points."""
    first, *others = runs.values()
    epoch = first.shows.epoch if all(other.shows.epoch == first.shows.epoch for other in others) else None
    shows = replace(first.shows, run=name, of=tuple(runs), epoch=epoch)
    mean = np.mean([curve.y for curve in runs.values()], axis=0)
    return draw_curve(ax, Curve(first.x, mean, shows, first.points), **look)


def draw_profile(
    ax: Axes,
    x: FloatArray,
    profile: Profile,
    curve: Statistic,
    shows: Shows,
    bootstrap: bool = False,
    **look: Any,
) -> CurveLine:
    """Add the curve of `profile_curve`."""
    return draw_curve(ax, profile_curve(x, profile, curve, shows, bootstrap), **look)


def profile_curve(
    x: FloatArray, profile: Profile, curve: Statistic, shows: Shows, bootstrap: bool = False
) -> Curve:
    """A Profile's curve by block against x, with its standard error over images.

    With `bootstrap` it is the 95 % interval of `bootstrap_interval` instead, if the curve has values of
    single images.
    """
    shows = replace(shows, epoch=profile.epoch, measure=curve.within_text, unit=curve.unit)
    error = profile.curve_se(curve.name)
    if bootstrap and curve.kind == "images":
        error = np.stack(bootstrap_interval(profile.curves[curve.name]))
    alike = (profile.probe_id, profile.bins)
    return Curve(x, profile.curve(curve.name), shows, places(profile), error, alike)


def curve_notes(*profiles: Profile | None, curve: Statistic, bootstrap: bool) -> list[str]:
    """`notes` for these Profiles' curves of one name."""
    bands, bootstrap = curve.kind != "pair", bootstrap and curve.kind == "images"
    return notes(*profiles, bands=bands, bins=curve.binned, bootstrap=bootstrap)


def label_y(axes: Sequence[Axes], curve: Statistic) -> None:
    """Name the y axis of panels that share it; logarithmic where the statistic and its values ask for it."""
    values = np.concatenate([finite(ax) for ax in axes])
    log = curve.wide and wide_span(values)
    for ax in axes:
        ax.set_ylabel(curve.axis + (" (log scale)" if log else ""))
        if log:
            log_y(ax)
        elif not finite(ax).size:
            not_measured(ax)


def mean_notes(axes: Sequence[Axes]) -> list[str]:
    """What a reader must know where means of several runs are drawn."""
    if not any(line.shows.of for line in curves(axes)):
        return []
    return ["Runs of one method, measured alike, are thin; their mean is thick and has no band."]


def curves(axes: Sequence[Axes]) -> list[CurveLine]:
    """Every such line, in the order in which it was drawn."""
    return [line for ax in axes for line in ax.lines if isinstance(line, CurveLine)]
