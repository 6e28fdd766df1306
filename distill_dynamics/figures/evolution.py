"""Curves by block, one line an epoch: of one run, and of several methods side by side (Figure 4)."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from distill_dynamics.dynamics.profile import FloatArray, Profile
from distill_dynamics.errors import UserError
from distill_dynamics.figures.curves import (
    THIN,
    Role,
    Shows,
    draw_mean,
    draw_profile,
    mean_notes,
    profile_curve,
)
from distill_dynamics.figures.heatmaps import draw_heatmap, entropy_heatmap
from distill_dynamics.figures.look import (
    BEST,
    MEASURES,
    STYLE,
    TEACHER,
    epoch_bar,
    epoch_colours,
    finite,
    footer,
    grid_of,
    layer_labels,
    log_y,
    named,
    not_measured,
    notes,
    plain,
    share_y,
    ticks,
    wide_span,
    word,
    wrapped,
)
from distill_dynamics.figures.order import distinct, ordered
from distill_dynamics.figures.spectrum import spectra
from distill_dynamics.runs.profiles import RunProfiles


@style.context(STYLE)
def entropy_evolution(
    students: Sequence[Profile],
    teacher: Profile | None = None,
    best: Profile | None = None,
    bootstrap: bool = False,
) -> Figure:
    """Entropy (Eq. 5, bits) against block: one line an epoch, the best checkpoint dashed, the teacher too.

    Bands are ± one standard error over images, or with `bootstrap` 95 % intervals. The teacher is dark and
    dash-dotted; one of another depth is drawn at matched relative depth (first block on first, last on last)
    with its own block numbers on top.

    Raises `ValueError` without students; `UserError` where students or `best` differ in depth, or where
    two of them are of one epoch or several of none.
    """
    return _evolution(students, teacher, best, bootstrap, "entropy")


@style.context(STYLE)
def magnitude_evolution(
    students: Sequence[Profile],
    teacher: Profile | None = None,
    best: Profile | None = None,
    bootstrap: bool = False,
) -> Figure:
    """Magnitude (Eq. 6) against block, drawn and guarded as `entropy_evolution`.

    The axis is logarithmic where the values span more than a factor of 30.
    """
    return _evolution(students, teacher, best, bootstrap, "magnitude")


@style.context(STYLE)
def overview(
    students: Sequence[Profile],
    teacher: Profile | None = None,
    best: Profile | None = None,
    title: str | None = None,
) -> Figure:
    """One wide picture of a run: entropy and magnitude by block, epoch by epoch, and the entropy heat map.

    Legible when shown 800 pixels wide. Raises as `entropy_evolution`.
    """
    students = ordered(students, best)
    figure = Figure(figsize=(9.6, 3.9), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    legend = _draw_run(left, students, teacher, best, "entropy")
    _draw_run(middle, students, teacher, best, "magnitude")
    epoch_bar(figure, [left, middle], [profile.epoch for profile in students])
    image = draw_heatmap(right, students, most=7)
    figure.colorbar(image, ax=right, label="Entropy (bits)").outline.set_visible(False)
    if left.child_axes:  # the teacher's axis has moved their titles up
        right.set_title(right.get_title("left"), pad=32)
    footer(figure, notes(*students, teacher, best), legend)
    if title is not None:
        figure.suptitle(plain(title), fontsize=11, x=0.01, ha="left")
    return figure


@style.context(STYLE)
def entropy_by_method(
    runs: Mapping[str, RunProfiles], methods: Mapping[str, str] | None = None, bootstrap: bool = False
) -> Figure:
    """The paper's Figure 4: entropy (bits) against block, a panel a method, a line an epoch, best dashed.

    Runs of one method and depth share a panel, which `methods` (name of a run → name of its panel) names: of
    several, each is thin, and their mean at the epochs at which all were probed is thick. A run that is not
    in it has a panel of its own, with bands of ± one standard error over images, or with `bootstrap` of 95 %
    intervals. One y axis and one colour an epoch for all; each teacher has a panel of its own, after the
    runs'. Runs may differ in depth and in probed epochs.

    Raises `ValueError` where no run has a student; `UserError` as `entropy_evolution`, within one run.
    """
    return _by_method(runs, methods or {}, bootstrap, "entropy")


@style.context(STYLE)
def magnitude_by_method(
    runs: Mapping[str, RunProfiles], methods: Mapping[str, str] | None = None, bootstrap: bool = False
) -> Figure:
    """Magnitude (Eq. 6) against block, drawn and guarded as `entropy_by_method`.

    The axis is logarithmic where the values span more than a factor of 30.
    """
    return _by_method(runs, methods or {}, bootstrap, "magnitude")


def of_run(
    students: Sequence[Profile],
    teacher: Profile | None = None,
    best: Profile | None = None,
    bootstrap: bool = False,
) -> dict[str, Figure]:
    """The figures of one run's student by name, those for which there is something to draw.

    Raises as `entropy_evolution`, but for a lack of students.
    """
    if not students:
        return {}
    drawn = {"entropy_evolution": entropy_evolution(students, teacher, best, bootstrap)}
    everything = [*students, *([best] if best else []), *([teacher] if teacher else [])]
    if any(np.isfinite(profile.magnitude).any() for profile in everything):
        drawn["magnitude_evolution"] = magnitude_evolution(students, teacher, best, bootstrap)
    drawn["entropy_heatmap"] = entropy_heatmap({students[0].model: students})
    with suppress(UserError):  # a dead student has no spectrum, and all else to show
        drawn["student_spectra"] = spectra(best or ordered(students)[-1])
    return drawn


def _evolution(
    students: Sequence[Profile],
    teacher: Profile | None,
    best: Profile | None,
    bootstrap: bool,
    measure: str,
) -> Figure:
    students = ordered(students, best)
    figure = Figure(figsize=(4.6, 3.9), layout="constrained")
    ax = figure.subplots()
    legend = _draw_run(ax, students, teacher, best, measure, bootstrap)
    epoch_bar(figure, [ax], [profile.epoch for profile in students])
    said = notes(*students, teacher, best, bins=measure == "entropy", bootstrap=bootstrap)
    footer(figure, said, legend)
    return figure


def _draw_run(
    ax: Axes,
    students: list[Profile],
    teacher: Profile | None,
    best: Profile | None,
    measure: str,
    bootstrap: bool = False,
) -> dict[str, Line2D]:
    """All curves of a run in one panel; returns the lines that no colour bar names."""
    heading, unit = MEASURES[measure]
    name, blocks = word(students[0]), _blocks(students[0])
    legend: dict[str, Line2D] = {}
    colours = epoch_colours(len(students))
    for profile, colour in zip(students, colours, strict=True):
        look = {"color": colour, "marker": ".", "markersize": 4}
        line = draw_profile(ax, blocks, profile, measure, Shows("student"), bootstrap, **look)
        if len(students) == 1:
            legend[named(profile)] = line
    if best is not None:
        label = "Best checkpoint" + ("" if best.epoch is None else f" (epoch {best.epoch})")
        legend[label] = draw_profile(ax, blocks, best, measure, Shows("best"), bootstrap, **BEST)
    if teacher is not None:
        # First block on first and last on last, as layer pairs are counted from either end.
        matched = np.linspace(1, len(blocks), len(teacher.layers))
        line = draw_profile(ax, matched, teacher, measure, Shows("teacher"), bootstrap, **TEACHER)
        legend[f"Teacher ({teacher.model})"] = line
        if len(matched) != len(blocks):
            top = ax.secondary_xaxis("top")
            ticks(top.xaxis, matched, layer_labels(teacher), most=8)
            top.set_xlabel(f"Teacher {word(teacher)} (matched depth)")
            top.spines["top"].set_visible(True)

    values = finite(ax)
    if values.size == 0:
        not_measured(ax)
        ax.set_yticks([])
    elif measure == "magnitude" and wide_span(values):
        log_y(ax)
        unit += " (log scale)"
    ticks(ax.xaxis, blocks, layer_labels(students[0]))
    if name == "layer" and sum(map(len, students[0].layers)) > 32:
        ax.tick_params("x", labelrotation=30)
    ax.set_xlabel(name.capitalize())
    ax.set_ylabel(unit)
    ax.set_title(f"{heading} by {name}")
    return legend


def _by_method(
    runs: Mapping[str, RunProfiles], methods: Mapping[str, str], bootstrap: bool, measure: str
) -> Figure:
    trained = {
        name: run._replace(students=ordered(run.students, run.best))
        for name, run in runs.items()
        if run.students
    }
    if not trained:
        raise ValueError("no Profiles to draw: no run has a student in training")
    panels: dict[tuple[str, int], dict[str, RunProfiles]] = {}
    for name, run in trained.items():
        panels.setdefault((methods.get(name, name), len(run.students[0].layers)), {})[name] = run
    teachers = distinct(run.teacher for run in trained.values())
    drawn = [profile for run in trained.values() for profile in run.students]
    epochs = sorted({profile.epoch for profile in drawn}, key=lambda epoch: -1 if epoch is None else epoch)
    colours = dict(zip(epochs, epoch_colours(len(epochs)), strict=True))

    figure, axes = grid_of(len(panels) + len(teachers), width=2.3, height=3.1)
    legend: dict[str, Line2D] = {}
    for ax, ((title, _), members) in zip(axes, panels.items(), strict=False):
        means = _means(members) if len(members) > 1 else []
        thin = THIN if means else {}
        for name, run in members.items():
            for profile in run.students:
                look = {"color": colours[profile.epoch], **(thin or {"marker": ".", "markersize": 4})}
                _draw_alone(ax, profile, measure, Shows("student", run=name), bootstrap, **look)
            if run.best is not None:
                look = {**BEST, **thin}
                shows = Shows("best", run=name)
                legend["Best checkpoint"] = _draw_alone(ax, run.best, measure, shows, bootstrap, **look)
        for role, profiles in means:
            curves = {n: profile_curve(_blocks(p), p, measure, Shows(role)) for n, p in profiles.items()}
            epoch = next(iter(profiles.values())).epoch
            draw_mean(ax, title, curves, **(BEST if role == "best" else {"color": colours[epoch]}))
        _label_panel(ax, title, next(iter(members.values())).students[0])
    for ax, teacher in zip(axes[len(panels) :], teachers, strict=True):
        legend["Teacher"] = _draw_alone(ax, teacher, measure, Shows("teacher"), bootstrap, **TEACHER)
        _label_panel(ax, f"Teacher ({teacher.model})", teacher)

    unit = MEASURES[measure][1]
    if wide_span(np.concatenate([finite(ax) for ax in axes])) and measure == "magnitude":
        for ax in axes:
            log_y(ax)
        unit += " (log scale)"
    for ax in axes:
        ax.set_ylabel(unit)
        if not finite(ax).size:
            not_measured(ax)
    share_y(axes)
    epoch_bar(figure, axes, epochs)
    said = notes(*drawn, *teachers, bins=measure == "entropy", bootstrap=bootstrap)
    footer(figure, [*said, *mean_notes(axes)], legend)
    return figure


def _draw_alone(
    ax: Axes, profile: Profile, measure: str, shows: Shows, bootstrap: bool, **look: Any
) -> Line2D:
    return draw_profile(ax, _blocks(profile), profile, measure, shows, bootstrap, **look)


def _blocks(profile: Profile) -> FloatArray:
    return np.arange(1.0, len(profile.layers) + 1)


def _means(runs: Mapping[str, RunProfiles]) -> list[tuple[Role, dict[str, Profile]]]:
    """Of what the runs of one panel have a mean: the epochs at which all were probed, and their best."""
    probes = {name: {profile.epoch: profile for profile in run.students} for name, run in runs.items()}
    shared = set.intersection(*map(set, probes.values()))
    found: list[tuple[Role, dict[str, Profile]]] = [
        ("student", {name: probed[epoch] for name, probed in probes.items()})
        for epoch in next(iter(probes.values()))
        if epoch in shared
    ]
    bests = {name: run.best for name, run in runs.items() if run.best}
    return [*found, ("best", bests)] if len(bests) == len(runs) else found


def _label_panel(ax: Axes, title: str, profile: Profile) -> None:
    ticks(ax.xaxis, _blocks(profile), layer_labels(profile), most=7)
    if word(profile) == "layer":
        ax.tick_params("x", labelrotation=30)
    ax.set_xlabel(word(profile).capitalize())
    ax.set_title(wrapped(title), fontsize=9)
