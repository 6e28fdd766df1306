"""What changes over the epochs of training: losses, accuracy, and the signature of the entropy curve."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from distill_dynamics.dynamics.profile import FloatArray, Profile
from distill_dynamics.dynamics.signature import gap, signature
from distill_dynamics.figures.curves import Curve, CurveLine, Shows, curves, draw_runs, mean_notes
from distill_dynamics.figures.look import (
    STYLE,
    TEACHER,
    Looks,
    finite,
    footer,
    grid_of,
    in_legend,
    log_y,
    not_measured,
    plain,
    run_looks,
    wide_span,
    wrapped,
)
from distill_dynamics.figures.order import ordered
from distill_dynamics.runs.profiles import RunProfiles

Rows = Sequence[Mapping[str, float]]

_DIP = "Smaller of fall and rise"
_PANELS = [
    ("Lowest block", ""),
    (_DIP, "bits"),
    ("Entropy of the last block", "bits"),
    ("Distance to the teacher", "bits"),
]

_TOP1 = ("val/acc1", "val/acc1_ema")

_MOST_PANELS = 40
_UNWEIGHTED = "Losses are unweighted; train/*: means over the epoch, val/loss: plain cross-entropy."


@style.context(STYLE)
def training_curves(runs: Mapping[str, Rows], looks: Looks | None = None) -> Figure:
    """Every loss term and top-1 against epoch, a panel each, a line a run: rows of each run's metrics.csv.

    Terms are those of `train/loss_*`, unweighted, and `val/loss`. Where the weights were averaged (callback
    EMA), their top-1 has a panel, too. A run that lacks a metric has no line in its panel. `looks` are those
    of `run_looks`, of these names and others. The teacher's top-1 is dark and dash-dotted. The axis of a loss
    is logarithmic where its values span more than a factor of 30.

    Raises `ValueError` where no row holds a loss or an accuracy.
    """
    metrics = _metrics([row for rows in runs.values() for row in rows])
    more = [f"{len(metrics) - _MOST_PANELS} more are in metrics.csv."] if len(metrics) > _MOST_PANELS else []
    metrics = metrics[-_MOST_PANELS:]
    if not metrics:
        raise ValueError("no training to draw: no row has train/loss_*, val/loss or val/acc1")
    looks = looks or run_looks([*runs])
    figure, axes = grid_of(len(metrics), width=2.6, height=2.6)
    legend: dict[str, Line2D] = {}
    for ax, metric in zip(axes, metrics, strict=True):
        drawn = {name: curve for name, rows in runs.items() if len((curve := _curve(rows, metric, name)).x)}
        # More markers run together.
        many = {name: {**looks[name], "marker": ""} for name, curve in drawn.items() if len(curve.x) > 60}
        legend |= draw_runs(ax, drawn, {**looks, **many})
        if metric in _TOP1:
            for accuracy in sorted({by_epoch(rows, "teacher/acc1")[1][:1].sum() for rows in runs.values()}):
                if accuracy > 0:
                    legend["Teacher"] = ax.axhline(accuracy, **TEACHER)
        values = finite(ax)
        if values.size == 0:
            not_measured(ax)
        elif metric not in _TOP1 and wide_span(values):
            log_y(ax)
        ax.set_title(plain(metric), fontsize=9)
        ax.set_ylabel("Top-1 (%)" if metric in _TOP1 else "Loss")
        ax.set_xlabel("Epoch")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    named = [in_legend(looks, name) for name in runs] if len(runs) > 1 else []  # a run alone needs no name
    shown = {name: legend[name] for name in [*named, "Teacher"] if name in legend}
    footer(figure, [_UNWEIGHTED, *more, *mean_notes(axes)], shown)
    return figure


@style.context(STYLE)
def signature_by_epoch(runs: Mapping[str, RunProfiles], looks: Looks | None = None) -> Figure:
    """How the shape of the entropy curve changes over training, a line a run.

    Panels: block of lowest entropy, the smaller of fall and rise (bits; the depth of the U where it is one,
    else its marker is open), entropy of the last block (bits), and distance to the teacher (bits, root mean
    square at matched relative depth). Bands are ± one standard deviation over resamples of the images, in the
    first two, and ± one standard error over images in the third. `looks` as in `training_curves`.

    Raises `ValueError` where no run has a student whose entropy is known; `UserError` as `curve_evolution`,
    within one run.
    """
    trained = {
        name: run
        for name, run in runs.items()
        if any(np.isfinite(profile.entropy).any() for profile in run.students)
    }
    if not trained:
        raise ValueError("no Profiles to draw: no run has a student in training whose entropy is known")
    looks = looks or run_looks([*runs])
    shapes = {name: _signatures(ordered(run.students), run.teacher) for name, run in trained.items()}
    students = {
        name: [profile for profile in ordered(run.students) if profile.epoch is not None]
        for name, run in trained.items()
    }
    # Without a teacher there is no distance, and no panel for it.
    panels = [
        panel
        for panel, _ in enumerate(_PANELS)
        if any(np.isfinite(found[panel][0]).any() for found in shapes.values())
    ]
    figure, axes = grid_of(len(panels), width=2.6, height=3)
    legend: dict[str, Line2D] = {}
    for ax, panel in zip(axes, panels, strict=True):
        measure, unit = _PANELS[panel]
        drawn: dict[str, Curve] = {}
        for name, found in shapes.items():
            y, error = found[panel]
            if students[name] and np.isfinite(y).any():
                epochs = np.array([profile.epoch for profile in students[name]], dtype=float)
                shows = Shows("run", run=name, measure=measure.lower(), unit=unit)
                points = [f"epoch {epoch:g}" for epoch in epochs]
                alike = (students[name][0].probe_id, students[name][0].bins)
                drawn[name] = Curve(epochs, y, shows, points, error, alike)
        legend |= draw_runs(ax, drawn, looks)
        if measure == _DIP:
            for line in curves([ax]):
                _open(ax, line, [students[name] for name in line.shows.of or [str(line.shows.run)]])
        ax.set_title(wrapped(measure), fontsize=9)
        ax.set_xlabel("Epoch")
        ax.set_ylabel(unit.capitalize() or "Block")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes[0].yaxis.set_major_locator(MaxNLocator(integer=True))
    said = [
        "Fall and rise: the first and the last block's entropy above the lowest's. Open markers: the curve "
        "is no U, or too few images tell; of a mean, that of one of its runs."
    ]
    if any(len(profile.entropy_images) > 1 for run in trained.values() for profile in run.students):
        said.append("Bands: ± standard deviation over resamples of the images; none for the distance.")
    footer(figure, [*said, *mean_notes(axes)], legend if len(runs) > 1 else None)
    return figure


def _open(ax: Axes, line: CurveLine, runs: Sequence[Sequence[Profile]]) -> None:
    """White markers where the curve is no U; of a mean, where that of one of its runs is none."""
    if not line.get_marker():
        return
    epochs, y = np.asarray(line.get_data(), dtype=float)
    u = [all(signature(profile).u_shaped for profile in alike) for alike in zip(*runs, strict=True)]
    no_u = ~np.array(u) & np.isfinite(y)
    if no_u.any():
        white = Line2D(epochs[no_u], y[no_u])
        white.update_from(line)
        white.set(linestyle="none", markerfacecolor="white", label="")
        line.companions.append(ax.add_line(white))


def _signatures(students: list[Profile], teacher: Profile | None) -> list[tuple[FloatArray, FloatArray]]:
    """Of each panel: the value of each student and its uncertainty."""
    found = [signature(profile) for profile in students]
    known = [np.isfinite(profile.entropy).all() for profile in students]
    nadir, nadir_se, depth, depth_se = (
        np.where(known, [getattr(one, name) for one in found], np.nan)
        for name in ("nadir", "nadir_se", "depth", "depth_se")
    )
    last, last_se = (
        np.array([getattr(profile, name)[-1] for profile in students]) for name in ("entropy", "entropy_se")
    )
    distance = [np.nan if teacher is None else gap(p, teacher).entropy_distance for p in students]
    unknown = np.full(len(students), np.nan)
    return [(nadir, nadir_se), (depth, depth_se), (last, last_se), (np.array(distance), unknown)]


def by_epoch(rows: Rows, name: str) -> tuple[FloatArray, FloatArray]:
    """Epochs and values of one metric; an infinite value is NaN."""
    points = [(row["epoch"], row[name]) for row in rows if name in row]
    epochs, values = np.array(points, dtype=float).reshape(-1, 2).T
    return epochs, np.where(np.isfinite(values), values, np.nan)


def _metrics(rows: Rows) -> list[str]:
    """Names of the loss terms, in the order of the loss; then val/loss and top-1, where there are any."""
    terms = {name for row in rows for name in row if name.startswith("train/loss_")}
    first = [name for name in ("train/loss_ce", "train/loss_kd") if name in terms]
    known = {name for row in rows for name in row}
    return [*first, *sorted(terms - {*first}), *(name for name in ("val/loss", *_TOP1) if name in known)]


def _curve(rows: Rows, metric: str, run: str) -> Curve:
    epochs, values = by_epoch(rows, metric)
    shows = Shows("run", run=run, measure=metric, unit="%" if metric in _TOP1 else "")
    return Curve(epochs, values, shows, [f"epoch {epoch:g}" for epoch in epochs])
