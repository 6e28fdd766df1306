"""Curves by block of one run, one line an epoch."""

from collections.abc import Sequence
from contextlib import suppress

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from distill_dynamics.dynamics.profile import Profile
from distill_dynamics.dynamics.statistics import SHOWN, Statistic, statistic
from distill_dynamics.errors import UserError
from distill_dynamics.figures.curves import curve_notes, curves, draw_epochs, draw_teacher, label_y
from distill_dynamics.figures.floors import floors_by_block, with_floors
from distill_dynamics.figures.heatmaps import draw_heatmap, entropy_heatmap, pair_heatmap
from distill_dynamics.figures.order import ordered
from distill_dynamics.figures.spectrum import spectra
from distill_dynamics.figures.style import (
    STYLE,
    TITLE,
    epoch_bar,
    epoch_colours,
    footer,
    label_blocks,
    layer_labels,
    named,
    notes,
    plain,
    ticks,
    word,
)
from distill_dynamics.runs.profiles import RunProfiles


@style.context(STYLE)
def curve_evolution(
    name: str,
    students: Sequence[Profile],
    teacher: Profile | None = None,
    best: Profile | None = None,
    bootstrap: bool = False,
) -> Figure:
    """A curve such as "entropy" against block: a line an epoch, the best checkpoint dashed, the teacher.

    Bands are ± one standard error over images, or with `bootstrap` 95 % intervals. The teacher is dark and
    dash-dotted; one of another depth is drawn at matched relative depth (first block on first, last on last)
    with its own block numbers on top. The axis of the magnitude is logarithmic where the values span more
    than a factor of 30.

    Raises `ValueError` without students; `UserError` where students or `best` differ in depth, or where
    two of them are of one epoch or several of none.
    """
    run, curve = RunProfiles(ordered(students, best), teacher, best), statistic(name)
    figure = Figure(figsize=(4.6, 3.9), layout="constrained")
    ax = figure.subplots()
    legend = _draw_run(ax, run, curve, bootstrap)
    epoch_bar(figure, [ax], [profile.epoch for profile in run.students])
    footer(figure, curve_notes(*students, teacher, best, curve=curve, bootstrap=bootstrap), legend)
    return figure


@style.context(STYLE)
def overview(
    students: Sequence[Profile],
    teacher: Profile | None = None,
    best: Profile | None = None,
    title: str | None = None,
) -> Figure:
    """One wide picture of a run: entropy and magnitude by block, epoch by epoch, and the entropy heat map.

    Legible when shown 800 pixels wide. Raises as `curve_evolution`.
    """
    run = RunProfiles(ordered(students, best), teacher, best)
    figure = Figure(figsize=(9.6, 3.9), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    legend = _draw_run(left, run, statistic("entropy"))
    _draw_run(middle, run, statistic("magnitude"))
    epoch_bar(figure, [left, middle], [profile.epoch for profile in run.students])
    image = draw_heatmap(right, run.students, most=7)
    figure.colorbar(image, ax=right, label="Entropy (bits)").outline.set_visible(False)
    if left.child_axes:  # the teacher's axis has moved their titles up
        right.set_title(right.get_title("left"), pad=32)
    footer(figure, notes(*students, teacher, best), legend)
    if title is not None:
        figure.suptitle(plain(title), fontsize=11, x=0.01, ha="left")
    return figure


def run_figures(
    students: Sequence[Profile],
    teacher: Profile | None = None,
    best: Profile | None = None,
    bootstrap: bool = False,
) -> dict[str, Figure]:
    """The figures of one run by name, those for which there is something to draw.

    Raises as `curve_evolution`, but for a lack of students.
    """
    if not students:
        return {}
    everything = [profile for profile in (*students, best, teacher) if profile is not None]
    by_epoch = [curve for curve in SHOWN if curve.kind != "halves"]
    known = [curve for curve in by_epoch if any(profile.known(curve.name) for profile in everything)]
    figures = {
        f"{curve.name}_evolution": curve_evolution(curve.name, students, teacher, best, bootstrap)
        for curve in known
    }
    figures["entropy_heatmap"] = entropy_heatmap({students[0].model: students})
    for curve in known:
        if curve.kind == "pair":
            panels = _panels(ordered(students), best)
            figures[f"{curve.name}_heatmap"] = pair_heatmap(curve.name, panels, teacher)
    if floors := with_floors([("Teacher", teacher)] if teacher else []):
        figures["floors_by_block"] = floors_by_block(floors)
    with suppress(UserError):  # a dead student has no spectrum, and all else to show
        figures["student_spectra"] = spectra(best or ordered(students)[-1])
    return figures


def _panels(students: list[Profile], best: Profile | None) -> dict[str, Profile]:
    """At most seven of the students, the first and the last among them, and the best checkpoint."""
    rows = sorted({round(place) for place in np.linspace(0, len(students) - 1, min(7, len(students)))})
    panels = {f"Epoch {students[row].epoch}": students[row] for row in rows}
    return panels | ({_best_label(best): best} if best is not None else {})


def _best_label(best: Profile) -> str:
    return "Best checkpoint" + ("" if best.epoch is None else f" (epoch {best.epoch})")


def _draw_run(ax: Axes, run: RunProfiles, curve: Statistic, bootstrap: bool = False) -> dict[str, Line2D]:
    """All curves of a run in one panel; returns the lines that no colour bar names."""
    students, teacher = run.students, run.teacher
    legend: dict[str, Line2D] = {}
    colours = dict(zip((profile.epoch for profile in students), epoch_colours(len(students)), strict=True))
    best = draw_epochs(ax, run, curve, colours, bootstrap=bootstrap)
    if len(students) == 1 and students[0].known(curve.name):
        legend[named(students[0])] = curves([ax])[0]
    if best and run.best:
        legend[_best_label(run.best)] = best
    if teacher is not None and teacher.known(curve.name):
        # First block on first and last on last, as layer pairs are counted from either end.
        matched = np.linspace(1, len(students[0].layers), len(teacher.layers))
        legend[f"Teacher ({teacher.model})"] = draw_teacher(ax, matched, teacher, curve, bootstrap)
        if len(matched) != len(students[0].layers):
            top = ax.secondary_xaxis("top")
            ticks(top.xaxis, matched, layer_labels(teacher), most=8)
            top.set_xlabel(f"Teacher {word(teacher)} (matched depth)")
            top.spines["top"].set_visible(True)

    label_y([ax], curve)
    label_blocks(ax, students[0])
    ax.set_title(f"{curve.heading or curve.title} by {word(students[0])}", gid=TITLE)
    return legend
