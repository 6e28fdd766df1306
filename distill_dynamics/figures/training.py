"""What changes over the epochs of training: losses, their weights, and what the student is measured by."""

from collections.abc import Mapping, Sequence
from itertools import chain

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from distill_dynamics.dynamics.profile import FloatArray
from distill_dynamics.figures.by_epoch import Panel, draw_panels, epoch_names
from distill_dynamics.figures.curves import Curve, CurveMeta, mean_notes
from distill_dynamics.figures.style import (
    CHANCE,
    STYLE,
    TEACHER,
    LineStyle,
    finite,
    footer,
    in_legend,
    log_y,
    not_measured,
    plain,
    run_styles,
    wide_span,
)
from distill_dynamics.runs.scores import OF_CLASSES, OF_FEATURES, Score
from distill_dynamics.text import listed

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
_TEACHERS = ("0.15", "0.4", "0.6")
"""Colours of a run's teachers: the first, the second, and all others."""


@style.context(STYLE)
def training_curves(
    runs: Mapping[str, Rows],
    styles: Mapping[str, LineStyle] | None = None,
    floors: Mapping[str, Mapping[str, float]] | None = None,
    chance: Mapping[str, float] | None = None,
) -> Figure:
    """Every loss term and top-1 against epoch, a panel each, a line a run: rows of each run's metrics.csv.

    Without classes top-1 is that of kNN and of a linear probe, and the effective rank has a panel, too.
    Terms are those of `train/loss_*`, unweighted, and `val/loss`. The weight of one that has a schedule, a
    gate or a budget, `train/weight_*`, has the panel behind it. Where the weights were averaged (callback
    EMA), their top-1 has a panel, too. A run that lacks a metric has no line in its panel. `styles` are those
    of `run_styles`, of these names and others. The teacher's top-1 is dark and dash-dotted. `floors` has by
    run and term what no linear map of the student can go below, dashed in the term's panel if it is above 0:
    grey where all runs share it, else in the colour of its run. `chance` has by run the top-1 of features by
    chance, percent: told, and dotted where the student comes near it. The axis of a loss is logarithmic where
    its values span more than a factor of 30.

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
        panels.append(Panel(plain(_capitalised(_in_words(metric))), y, drawn))
    styles, levels = styles or run_styles([*runs]), sorted({*(chance or {}).values()})
    figure, axes, legend = draw_panels(panels, styles, height=2.6)
    beside, floor = dict[str, Line2D](), dict[str, Line2D]()
    for ax, metric in zip(axes, metrics[-_MOST_PANELS:], strict=True):
        if metric in _SCORED:
            beside |= _draw_teachers(ax, _SCORED[metric], [*runs.values()])
            if levels and _is_top1_of_features(metric):
                beside |= _draw_chance(ax, levels)
        if line := _draw_floors(ax, metric.removeprefix(_LOSS), floors or {}, styles):
            floor = {"Floor": line}
        if metric.startswith(_WEIGHT):
            ax.set_ylim(bottom=0)
        elif metric not in _SCORED and wide_span(finite(ax)):
            log_y(ax)
        if not finite(ax).size:
            not_measured(ax)
    labels = [in_legend(styles, name) for name in runs] if len(runs) > 1 else []  # a run alone needs no name
    entropy = "; the validation loss is plain cross-entropy" if "val/loss" in metrics else ""
    notes = [f"Losses are unweighted means over the epoch{entropy}."]
    if levels and any(map(_is_top1_of_features, metrics)):
        notes.append(f"Top-1 by chance: {listed([f'{level:.4g}' for level in levels])} %.")
    if any(metric.startswith(_WEIGHT) for metric in metrics):
        notes.append("β: what the term before it is multiplied by, the mean over its pairs of blocks.")
    if len(metrics) > _MOST_PANELS:
        notes.append(f"{len(metrics) - _MOST_PANELS} more are in metrics.csv.")
    shown = {label: legend[label] for label in labels if label in legend}
    footer(figure, [*notes, *mean_notes(axes)], {**shown, **beside, **floor})
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


def _is_top1_of_features(metric: str) -> bool:
    return metric in _SCORED and _SCORED[metric] in OF_FEATURES and bool(_SCORED[metric].unit)


def _draw_teachers(ax: Axes, score: Score, runs: Sequence[Rows]) -> dict[str, Line2D]:
    """A line a teacher, as it was measured once; by what the legend calls it."""
    names = {name for rows in runs for row in rows for name in row if name.startswith("teacher")}
    roles = sorted(name.partition("/")[0] for name in names if name.endswith(f"/{score.name}"))
    legend = {}
    for place, role in enumerate(roles):
        colour = _TEACHERS[min(place, len(_TEACHERS) - 1)]
        for value in sorted({_by_epoch(rows, f"{role}/{score.name}")[1][:1].sum() for rows in runs}):
            if value > 0:
                line = ax.axhline(value, **{**TEACHER, "color": colour})
                legend[_capitalised(role.replace("_", " ", 1))] = line
    return legend


def _draw_chance(ax: Axes, levels: Sequence[float]) -> dict[str, Line2D]:
    """Lines that take no more than half of the axis from the curves."""
    low, high = ax.get_ylim()
    near = [level for level in levels if low - level < high - low]
    lines = [ax.axhline(level, **CHANCE) for level in near]
    return {"Chance": lines[0]} if lines else {}


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


def _metric_curve(rows: Rows, metric: str, run: str) -> Curve:
    epochs, values = _by_epoch(rows, metric)
    unit = _SCORED[metric].unit if metric in _SCORED else ""
    meta = CurveMeta("run", run=run, measure=_in_words(metric), unit=unit)
    return Curve(epochs, values, meta, epoch_names(epochs))


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
