"""What changes over the epochs of training: losses, accuracy, and the signature of the entropy curve."""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from distill_dynamics.dynamics.profile import FloatArray, Profile
from distill_dynamics.dynamics.signature import gap, signature
from distill_dynamics.figures.curves import Curve, CurveLine, CurveMeta, curves, draw_runs, mean_notes
from distill_dynamics.figures.order import ordered
from distill_dynamics.figures.style import (
    STYLE,
    TEACHER,
    LineStyle,
    finite,
    footer,
    grid_of,
    in_legend,
    log_y,
    not_measured,
    plain,
    run_styles,
    wide_span,
    wrapped,
)
from distill_dynamics.runs.profiles import RunProfiles
from distill_dynamics.runs.scores import OF_CLASSES, OF_FEATURES

Rows = Sequence[Mapping[str, float]]

_SCORED = {
    f"{score.metric}{end}": score
    for score in (OF_CLASSES[0], *OF_FEATURES)
    for end in ("", "_ema")
    if not end or score.name.endswith("1")
}
"""Panels of what a student is measured by, and by which score a teacher is, too."""

_WORDS = {
    "val/loss": "validation loss",
    **{
        metric: f"{score.title} (EMA)" if metric.endswith("_ema") else score.title
        for metric, score in _SCORED.items()
    },
    "val/acc1_ema": "top-1 of averaged weights (EMA)",
}
_LOSS, _WEIGHT = "train/loss_", "train/weight_"
_MOST_PANELS = 40
_LOWEST, _DIP = "Lowest block", "Smaller of fall and rise"
_SIGNATURES = {
    _LOWEST: "",
    _DIP: "bits",
    "Entropy of the last block": "bits",
    "Distance to the teacher": "bits",
}
"""Title of a panel → unit."""


class _Panel(NamedTuple):
    title: str
    y: str
    """Label of its axis."""
    runs: Mapping[str, Curve]


@style.context(STYLE)
def training_curves(
    runs: Mapping[str, Rows],
    styles: Mapping[str, LineStyle] | None = None,
    floors: Mapping[str, Mapping[str, float]] | None = None,
) -> Figure:
    """Every loss term and top-1 against epoch, a panel each, a line a run: rows of each run's metrics.csv.

    Without classes top-1 is that of kNN and of a linear probe, and the effective rank has a panel, too.
    Terms are those of `train/loss_*`, unweighted, and `val/loss`. The weight of one that has a schedule, a
    gate or a budget, `train/weight_*`, has the panel behind it. Where the weights were averaged (callback
    EMA), their top-1 has a panel, too. A run that lacks a metric has no line in its panel. `styles` are those
    of `run_styles`, of these names and others. The teacher's top-1 is dark and dash-dotted. `floors` has by
    run and term what no linear map of the student can go below, dashed in the term's panel if it is above 0:
    grey where all runs share it, else in the colour of its run. The axis of a loss is logarithmic where its
    values span more than a factor of 30.

    Raises `ValueError` where no row holds a loss or an accuracy.
    """
    metrics = metric_names([row for rows in runs.values() for row in rows])
    if not metrics:
        raise ValueError("no training to draw: no row has train/loss_*, val/loss or val/acc1")
    panels = []
    for metric in metrics[-_MOST_PANELS:]:
        curves_of = {name: _metric_curve(rows, metric, name) for name, rows in runs.items()}
        drawn = {name: curve for name, curve in curves_of.items() if len(curve.x)}
        y = _axis(metric)
        panels.append(_Panel(plain(_capitalised(_in_words(metric))), y, drawn))
    styles = styles or run_styles([*runs])
    figure, axes, legend = _draw(panels, styles, height=2.6)
    for ax, metric in zip(axes, metrics[-_MOST_PANELS:], strict=True):
        if metric in _SCORED:
            once = f"teacher/{_SCORED[metric].name}"
            for value in sorted({_by_epoch(rows, once)[1][:1].sum() for rows in runs.values()}):
                if value > 0:
                    legend["Teacher"] = ax.axhline(value, **TEACHER)
        if line := _draw_floors(ax, metric.removeprefix(_LOSS), floors or {}, styles):
            legend["Floor"] = line
        if metric.startswith(_WEIGHT):
            ax.set_ylim(bottom=0)
        elif metric not in _SCORED and wide_span(finite(ax)):
            log_y(ax)
        if not finite(ax).size:
            not_measured(ax)
    labels = [in_legend(styles, name) for name in runs] if len(runs) > 1 else []  # a run alone needs no name
    entropy = "; the validation loss is plain cross-entropy" if "val/loss" in metrics else ""
    notes = [f"Losses are unweighted means over the epoch{entropy}."]
    if any(metric.startswith(_WEIGHT) for metric in metrics):
        notes.append("β: what the term before it is multiplied by, the mean over its pairs of blocks.")
    if len(metrics) > _MOST_PANELS:
        notes.append(f"{len(metrics) - _MOST_PANELS} more are in metrics.csv.")
    shown = {label: legend[label] for label in [*labels, "Teacher", "Floor"] if label in legend}
    footer(figure, [*notes, *mean_notes(axes)], shown)
    return figure


@style.context(STYLE)
def signature_by_epoch(
    runs: Mapping[str, RunProfiles], styles: Mapping[str, LineStyle] | None = None
) -> Figure:
    """How the shape of the entropy curve changes over training, a line a run.

    Panels: block of lowest entropy, the smaller of fall and rise (bits; the depth of the U where it is one,
    else its marker is open), entropy of the last block (bits), and distance to the teacher (bits, root mean
    square at matched relative depth). Bands are ± one standard deviation over resamples of the images, in the
    first two, and ± one standard error over images in the third. `styles` as in `training_curves`.

    Raises `ValueError` where no run has a student whose entropy is known; `UserError` as `curve_evolution`,
    within one run.
    """
    students = {
        name: [profile for profile in ordered(run.students) if profile.epoch is not None]
        for name, run in runs.items()
        if any(profile.known("entropy") for profile in run.students)
    }
    if not students:
        raise ValueError("no Profiles to draw: no run has a student in training whose entropy is known")
    signatures = {name: _signatures(profiles, runs[name].teacher) for name, profiles in students.items()}
    panels = {}
    for number, (title, unit) in enumerate(_SIGNATURES.items()):
        drawn = {
            name: _signature_curve(name, students[name], title, *values[number])
            for name, values in signatures.items()
            if np.isfinite(values[number][0]).any()
        }
        if drawn:  # without a teacher there is no distance, and no panel for it
            panels[title] = _Panel(wrapped(title), unit.capitalize() or "Block", drawn)
    figure, axes, legend = _draw([*panels.values()], styles or run_styles([*runs]), height=3)
    for ax, title in zip(axes, panels, strict=True):
        if title == _LOWEST:
            ax.yaxis.set_major_locator(MaxNLocator(integer=True))
        if title == _DIP:
            for line in curves([ax]):
                _open_markers(ax, line, [students[name] for name in line.meta.of or [str(line.meta.run)]])
    notes = [
        "Fall and rise: the first and the last block's entropy above the lowest's. Open markers: the curve "
        "is no U, or too few images tell; of a mean, that of one of its runs."
    ]
    if any(len(profile.entropy_images) > 1 for profiles in students.values() for profile in profiles):
        notes.append("Bands: ± standard deviation over resamples of the images; none for the distance.")
    footer(figure, [*notes, *mean_notes(axes)], legend if len(runs) > 1 else None)
    return figure


def _in_words(metric: str) -> str:
    """What a metric is called in a figure."""
    for prefix, of in ((_LOSS, ""), (_WEIGHT, "Weight: ")):
        if metric.startswith(prefix):
            term = metric.removeprefix(prefix)
            return of + {"ce": "cross-entropy", "kd": "logit distillation"}.get(term, f"term {term}")
    return _WORDS[metric]


def _axis(metric: str) -> str:
    if metric in _SCORED:
        return "Top-1 (%)" if _SCORED[metric].unit else "Directions"
    return "β" if metric.startswith(_WEIGHT) else "Loss"


def _capitalised(words: str) -> str:
    return words if words.startswith("kNN") else words[:1].upper() + words[1:]


def _draw_floors(
    ax: Axes, term: str, floors: Mapping[str, Mapping[str, float]], styles: Mapping[str, LineStyle]
) -> Line2D | None:
    """A line a value that no linear map of a student can go below; one of them for the legend."""
    runs: dict[float, list[str]] = {}
    for name, of in floors.items():
        if of.get(term, 0) > 0:
            runs.setdefault(of[term], []).append(name)
    line = None
    for floor, names in sorted(runs.items()):
        colour = "0.4" if len(runs) == 1 else styles[names[0]]["color"]
        line = ax.axhline(floor, color=colour, linestyle="--", linewidth=1)
    return line


def _draw(
    panels: Sequence[_Panel], styles: Mapping[str, LineStyle], height: float
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


def _open_markers(ax: Axes, line: CurveLine, runs: Sequence[Sequence[Profile]]) -> None:
    """White markers where the curve is no U; of a mean, where that of one of its runs is none."""
    if not line.get_marker():
        return
    epochs, y = np.asarray(line.get_data(), dtype=float)
    u = [all(signature(profile).u_shaped for profile in probes) for probes in zip(*runs, strict=True)]
    no_u = ~np.array(u) & np.isfinite(y)
    if no_u.any():
        white = Line2D(epochs[no_u], y[no_u])
        white.update_from(line)
        white.set(linestyle="none", markerfacecolor="white", label="")
        line.companions.append(ax.add_line(white))


def _signatures(students: list[Profile], teacher: Profile | None) -> list[tuple[FloatArray, FloatArray]]:
    """Of each of `_SIGNATURES`: the value of each student and its uncertainty."""
    signatures = [signature(profile) for profile in students]
    known = [np.isfinite(profile.entropy).all() for profile in students]
    nadir, nadir_se, depth, depth_se = (
        np.where(known, [getattr(one, name) for one in signatures], np.nan)
        for name in ("nadir", "nadir_se", "depth", "depth_se")
    )
    last, last_se = (
        np.array([getattr(profile, name)[-1] for profile in students]) for name in ("entropy", "entropy_se")
    )
    distance = [np.nan if teacher is None else gap(p, teacher).entropy_distance for p in students]
    unknown = np.full(len(students), np.nan)
    return [(nadir, nadir_se), (depth, depth_se), (last, last_se), (np.array(distance), unknown)]


def _signature_curve(
    run: str, students: list[Profile], title: str, y: FloatArray, error: FloatArray
) -> Curve:
    epochs = np.array([profile.epoch for profile in students], dtype=float)
    meta = CurveMeta("run", run=run, measure=title.lower(), unit=_SIGNATURES[title])
    measured = (students[0].probe_id, students[0].bins)
    return Curve(epochs, y, meta, _epoch_names(epochs), error, measured)


def _metric_curve(rows: Rows, metric: str, run: str) -> Curve:
    epochs, values = _by_epoch(rows, metric)
    unit = _SCORED[metric].unit if metric in _SCORED else ""
    meta = CurveMeta("run", run=run, measure=_in_words(metric), unit=unit)
    return Curve(epochs, values, meta, _epoch_names(epochs))


def _epoch_names(epochs: FloatArray) -> list[str]:
    return [f"epoch {epoch:g}" for epoch in epochs]


def _by_epoch(rows: Rows, name: str) -> tuple[FloatArray, FloatArray]:
    """Epochs and values of one metric; an infinite value is NaN."""
    points = [(row["epoch"], row[name]) for row in rows if name in row]
    epochs, values = np.array(points, dtype=float).reshape(-1, 2).T
    return epochs, np.where(np.isfinite(values), values, np.nan)


def metric_names(rows: Rows) -> list[str]:
    """Those known of: loss terms in the order of the loss, each before its weight; val/loss and scores."""
    terms = {name for row in rows for name in row if name.startswith(_LOSS)}
    first = [name for name in ("train/loss_ce", "train/loss_kd") if name in terms]
    known = {name for row in rows for name in row}
    pairs = [(name, name.replace(_LOSS, _WEIGHT, 1)) for name in [*first, *sorted(terms - {*first})]]
    return [name for name in [*chain(*pairs), "val/loss", *_SCORED] if name in known]
