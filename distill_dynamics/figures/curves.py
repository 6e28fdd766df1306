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
from distill_dynamics.figures.style import (
    BEST,
    TEACHER,
    LineStyle,
    block_places,
    finite,
    in_legend,
    log_y,
    not_measured,
    notes,
    places,
    wide_span,
)
from distill_dynamics.runs.profiles import RunProfiles

Role = Literal["student", "best", "teacher", "run"]


@dataclass(frozen=True)
class CurveMeta:
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


class Curve(NamedTuple):
    """What a line is drawn of."""

    x: FloatArray
    y: FloatArray
    meta: CurveMeta
    points: Sequence[str]
    """What each point is called."""
    error: FloatArray | None = None
    """[n], a standard error or deviation, or [2, n], the ends of an interval; NaN where unknown."""
    measured: tuple[str, int] | None = None
    """Images and bins, in which values must be alike to have a mean; None where they do not matter."""


class CurveLine(Line2D):
    """A line of an axes with its meaning."""

    def __init__(self, curve: Curve, **style: Any) -> None:
        super().__init__(curve.x, curve.y, **{"linewidth": 1.5, **style})
        self.meta = curve.meta
        self.points = list(curve.points)
        self.error = np.full(len(self.points), np.nan) if curve.error is None else curve.error
        self.companions: list[Artist] = []
        """Artists that come and go with the line: its band."""


THIN: dict[str, Any] = {"linewidth": 0.5, "alpha": 0.7, "marker": "", "band": False}
"""Each of several runs whose mean is drawn, too."""


def draw_curve(ax: Axes, curve: Curve, band: bool = True, **style: Any) -> CurveLine:
    """Add a line to the axes, its error around it as a band."""
    line = CurveLine(curve, **style)
    ax.add_line(line)
    if band and np.isfinite(line.error).any():
        low, high = line.error if line.error.ndim == 2 else (curve.y - line.error, curve.y + line.error)
        area = ax.fill_between(curve.x, low, high, color=line.get_color(), alpha=0.18, linewidth=0)
        line.companions.append(area)
    ax.autoscale_view()
    return line


def draw_runs(ax: Axes, runs: Mapping[str, Curve], styles: Mapping[str, LineStyle]) -> dict[str, CurveLine]:
    """Add a line a run, by name; returns for each line of the legend one to show there.

    Runs that share one (see `LineStyle`) are thin, and their mean is thick, if they have the same points and
    were measured alike.
    """
    groups: dict[str, list[str]] = {}
    for name in runs:
        groups.setdefault(in_legend(styles, name), []).append(name)
    legend: dict[str, CurveLine] = {}
    for label, names in groups.items():
        members = {name: runs[name] for name in names}
        averaged = len(names) > 1 and len({(*c.points, c.measured) for c in members.values()}) == 1
        for name, curve in members.items():
            legend[label] = draw_curve(ax, curve, **{**styles[name], **(THIN if averaged else {})})
        if averaged:
            legend[label] = draw_mean(ax, label, members, **styles[names[0]])
    return legend


def draw_mean(ax: Axes, name: str, runs: Mapping[str, Curve], **style: Any) -> CurveLine:
    """Add the mean of several runs' curves, which have the same points."""
    first = next(iter(runs.values()))
    epochs = {curve.meta.epoch for curve in runs.values()}
    meta = replace(first.meta, run=name, of=tuple(runs), epoch=epochs.pop() if len(epochs) == 1 else None)
    mean = np.mean([curve.y for curve in runs.values()], axis=0)
    return draw_curve(ax, Curve(first.x, mean, meta, first.points), **style)


def profile_curve(
    x: FloatArray, profile: Profile, curve: Statistic, meta: CurveMeta, bootstrap: bool = False
) -> Curve:
    """A Profile's curve by block against x, with its standard error over images.

    With `bootstrap` it is the 95 % interval of `bootstrap_interval` instead, if the curve has values of
    single images.
    """
    meta = replace(meta, epoch=profile.epoch, measure=curve.within_text, unit=curve.unit)
    error = profile.curve_se(curve.name)
    if bootstrap and curve.kind == "images":
        error = np.stack(bootstrap_interval(profile.curves[curve.name]))
    measured = (profile.probe_id, profile.bins)
    return Curve(x, profile.curve(curve.name), meta, places(profile), error, measured)


def draw_epochs(
    ax: Axes,
    run: RunProfiles,
    curve: Statistic,
    colours: Mapping[int | None, Any],
    name: str | None = None,
    bootstrap: bool = False,
    **thin: Any,
) -> CurveLine | None:
    """Add a line an epoch, and a dashed one of the best checkpoint, which is returned if there is one.

    Profiles that lack the curve are left out. `colours` are by epoch; `name` is the run's.
    """
    x, best = block_places(run.students[0]), None
    for profile in run.students:
        if profile.known(curve.name):
            style = {"color": colours[profile.epoch], "marker": ".", "markersize": 4, **thin}
            student = profile_curve(x, profile, curve, CurveMeta("student", run=name), bootstrap)
            draw_curve(ax, student, **style)
    if run.best is not None and run.best.known(curve.name):
        meta = CurveMeta("best", run=name)
        best = draw_curve(ax, profile_curve(x, run.best, curve, meta, bootstrap), **{**BEST, **thin})
    return best


def draw_teacher(ax: Axes, x: FloatArray, teacher: Profile, curve: Statistic, bootstrap: bool) -> CurveLine:
    """Add the curve of a teacher against x, dark and dash-dotted."""
    return draw_curve(ax, profile_curve(x, teacher, curve, CurveMeta("teacher"), bootstrap), **TEACHER)


def curve_notes(*profiles: Profile | None, curve: Statistic, bootstrap: bool) -> list[str]:
    """`notes` for these Profiles' curves of one name."""
    bands, bootstrap = curve.kind != "pair", bootstrap and curve.kind == "images"
    return notes(*profiles, bands=bands, bins=curve.binned, bootstrap=bootstrap)


def label_y(axes: Sequence[Axes], curve: Statistic) -> None:
    """Name the y axis of panels that share it; logarithmic where the statistic and its values ask for it."""
    log = curve.wide and wide_span(np.concatenate([finite(ax) for ax in axes]))
    for ax in axes:
        ax.set_ylabel(curve.axis + (" (log scale)" if log else ""))
        if log:
            log_y(ax)
        elif not finite(ax).size:
            ax.set_yticks([])
            not_measured(ax)


def mean_notes(axes: Sequence[Axes]) -> list[str]:
    """What a reader must know where means of several runs are drawn."""
    if not any(line.meta.of for line in curves(axes)):
        return []
    return ["Runs of one method, measured alike, are thin; their mean is thick and has no band."]


def curves(axes: Sequence[Axes]) -> list[CurveLine]:
    """Every such line, in the order in which it was drawn."""
    return [line for ax in axes for line in ax.lines if isinstance(line, CurveLine)]
