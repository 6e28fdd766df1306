"""Curves by block over the epochs of several runs, a panel a method (the paper's Figure 4)."""

from collections.abc import Mapping

from matplotlib import style
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from distill_dynamics.dynamics.profile import Profile
from distill_dynamics.dynamics.statistics import statistic
from distill_dynamics.figures.curves import (
    THIN,
    CurveMeta,
    Role,
    curve_notes,
    draw_epochs,
    draw_mean,
    draw_teacher,
    label_y,
    mean_notes,
    profile_curve,
)
from distill_dynamics.figures.order import distinct, ordered
from distill_dynamics.figures.style import (
    BEST,
    STYLE,
    block_places,
    epoch_bar,
    epoch_colours,
    footer,
    grid_of,
    label_blocks,
    wrapped,
)
from distill_dynamics.runs.profiles import RunProfiles


@style.context(STYLE)
def curve_by_method(
    name: str,
    runs: Mapping[str, RunProfiles],
    methods: Mapping[str, str] | None = None,
    bootstrap: bool = False,
) -> Figure:
    """The paper's Figure 4: a curve such as "entropy" by block, a panel a method, a line an epoch.

    The best checkpoint is dashed. Runs of one method and depth share a panel, which `methods` (name of a run
    → name of its panel) names: of several, each is thin, and their mean at the epochs at which all were
    probed is thick. A run that is not in it has a panel of its own, with bands of ± one standard error over
    images, or with `bootstrap` of 95 % intervals. One y axis and one colour an epoch for all; each teacher
    has a panel of its own, after the runs'. Runs may differ in depth and in probed epochs. The axis of the
    magnitude is logarithmic where the values span more than a factor of 30.

    Raises `ValueError` where no run has a student with such a curve; `UserError` as `curve_evolution`, within
    one run.
    """
    curve, methods = statistic(name), methods or {}
    trained: dict[str, RunProfiles] = {}
    for label, run in runs.items():
        students = [student for student in run.students if student.known(name)]
        if students:
            shown = run.best if run.best is not None and run.best.known(name) else None
            trained[label] = RunProfiles(ordered(students, shown), run.teacher, shown)
    if not trained:
        raise ValueError("no Profiles to draw: no run has a student in training")
    panels: dict[tuple[str, int], dict[str, RunProfiles]] = {}
    for label, run in trained.items():
        panels.setdefault((methods.get(label, label), len(run.students[0].layers)), {})[label] = run
    teachers = [t for t in distinct(run.teacher for run in trained.values()) if t.known(name)]
    drawn = [profile for run in trained.values() for profile in run.students]
    epochs = sorted({profile.epoch for profile in drawn}, key=lambda epoch: -1 if epoch is None else epoch)
    colours = dict(zip(epochs, epoch_colours(len(epochs)), strict=True))

    figure, axes = grid_of(len(panels) + len(teachers), width=2.3, height=3.1, sharey=True)
    legend: dict[str, Line2D] = {}
    for ax, ((title, _), members) in zip(axes, panels.items(), strict=False):
        means = _means(members) if len(members) > 1 else []
        for label, run in members.items():
            best = draw_epochs(ax, run, curve, colours, label, bootstrap, **(THIN if means else {}))
            legend |= {"Best checkpoint": best} if best else {}
        for role, profiles in means:
            lines = {
                n: profile_curve(block_places(p), p, curve, CurveMeta(role)) for n, p in profiles.items()
            }
            epoch = next(iter(profiles.values())).epoch
            draw_mean(ax, title, lines, **(BEST if role == "best" else {"color": colours[epoch]}))
        label_blocks(ax, next(iter(members.values())).students[0], most=7)
        ax.set_title(wrapped(title), fontsize=9)
    for ax, teacher in zip(axes[len(panels) :], teachers, strict=True):
        legend["Teacher"] = draw_teacher(ax, block_places(teacher), teacher, curve, bootstrap)
        label_blocks(ax, teacher, most=7)
        ax.set_title(wrapped(f"Teacher ({teacher.model})"), fontsize=9)

    label_y(axes, curve)
    for ax in axes:
        if not ax.get_subplotspec().is_first_col():  # type: ignore[union-attr]
            ax.set_ylabel("")
    epoch_bar(figure, axes, epochs)
    notes = curve_notes(*drawn, *teachers, curve=curve, bootstrap=bootstrap)
    footer(figure, [*notes, *mean_notes(axes)], legend)
    return figure


def _means(runs: Mapping[str, RunProfiles]) -> list[tuple[Role, dict[str, Profile]]]:
    """Of what the runs of one panel have a mean: the epochs at which all were probed, and their best."""
    probes = {name: {profile.epoch: profile for profile in run.students} for name, run in runs.items()}
    shared = set.intersection(*map(set, probes.values()))
    means: list[tuple[Role, dict[str, Profile]]] = [
        ("student", {name: probed[epoch] for name, probed in probes.items()})
        for epoch in next(iter(probes.values()))
        if epoch in shared
    ]
    bests = {name: run.best for name, run in runs.items() if run.best}
    return [*means, ("best", bests)] if len(bests) == len(runs) else means
