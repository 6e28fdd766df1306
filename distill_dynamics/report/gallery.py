"""Which figures a report of these runs shows, under which names, and with which captions."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from matplotlib.figure import Figure

from distill_dynamics import figures
from distill_dynamics.dynamics.profile import Profile
from distill_dynamics.dynamics.statistics import SHOWN
from distill_dynamics.errors import UserError
from distill_dynamics.figures.floors import with_floors
from distill_dynamics.figures.order import distinct
from distill_dynamics.figures.style import LineStyle, named, run_styles
from distill_dynamics.figures.training import metric_names
from distill_dynamics.report.captions import FLOORS, LINES, RANGES, SPECTRUM, about, of_training, pair_caption
from distill_dynamics.report.records import Run
from distill_dynamics.report.study import Study
from distill_dynamics.tables import measured
from distill_dynamics.text import counted, listed


@dataclass(frozen=True)
class Picture:
    """A figure of a report."""

    name: str
    """Letters, digits, _ and -: the stem of its files, and its id on the page."""
    title: str
    caption: str
    figure: Figure
    run: str | None = None
    """The label of the run that it belongs to alone, None for a figure of all."""


_MOST_SPECTRA = 6
"""Of so many runs the spectra are drawn: a row of the page for two."""

_MOST_NAMED = 12
"""Of more runs, those of one method share a line of the legend."""

_BY_EPOCH = [curve for curve in SHOWN if curve.kind != "halves"]
"""What has a line an epoch; floors are of one Profile."""


def gallery(study: Study) -> list[Picture]:
    """The figures for which these runs have something to show, in the order of a report."""
    if len(study.runs) == 1 and study.runs[0].kind == "fit":
        study = Study([study.runs[0].relabelled("student")])  # its name tells it from no other
    drawn = _of_one(study, study.runs[0]) if len(study.runs) == 1 else _of_several(study)
    pictures: dict[str, Picture] = {}
    for picture in drawn:
        # Good for files and ids, with a number behind those that would be there twice.
        stem = name = re.sub(r"[^A-Za-z0-9_-]+", "-", picture.name)
        number = 1
        while name in pictures:
            number += 1
            name = f"{stem}-{number}"
        pictures[name] = replace(picture, name=name)
    return list(pictures.values())


def _of_one(study: Study, run: Run) -> Iterator[Picture]:
    students, teacher, best, _ = run.profiles
    styles = _styles(study)
    if not students:
        yield from _by_block(study, styles)
        yield from _floors([run])
        yield from _training([run], styles)
        yield from _teacher_spectra([run])
        if run.latest is not None:
            yield from _spectra("spectra", "Spectra", run.latest)
        return
    captions = {
        "floors_by_block": FLOORS,
        "entropy_heatmap": (
            "Entropy by block and epoch",
            "The student's entropy again, as colour: one column a probed epoch.",
        ),
        "student_spectra": (f"Spectra of the student, {named(best or students[-1])}", SPECTRUM),
    }
    for curve in _BY_EPOCH:
        lines = f"{curve.about}. {LINES}, dash-dotted the teacher, where there are any."
        captions[f"{curve.name}_evolution"] = f"{curve.title} by block", lines
        captions[f"{curve.name}_heatmap"] = captions.get(f"{curve.name}_heatmap", pair_caption(curve))
    drawn = figures.run_figures(students, teacher, best, run.bootstrap)
    spectra = drawn.pop("student_spectra", None)
    yield from (Picture(name, *captions[name], figure) for name, figure in drawn.items())
    yield from _training([run], styles)
    yield from _signature([run], styles)
    yield from _teacher_spectra([run])
    if spectra:
        yield Picture("student_spectra", *captions["student_spectra"], spectra)


def _of_several(study: Study) -> Iterator[Picture]:
    runs, styles, panels = study.runs, _styles(study), _panels(study)
    yield from _by_block(study, styles)
    trained = [run for run in runs if run.profiles.students]
    shared = " Runs that differ by their seed alone share a panel." if panels else ""
    for curve in _BY_EPOCH:
        known = [run for run in trained if _known(run, curve.name)]
        # What has no bins is drawn once of a model that was analysed in several ranges.
        once = [*{run.label: run for run in known}.values()]
        for suffix, where, alike in _by_range(known) if curve.binned else [("", "", once)]:
            if profiles := {run.label: run.profiles for run in alike}:
                yield Picture(
                    f"{curve.name}_by_method{suffix}",
                    f"{curve.title} evolution by method{where}",
                    f"{about(curve, 'by_method')}. {LINES}. A panel a method, one y axis; teachers have "
                    f"panels of their own.{shared}",
                    figures.curve_by_method(curve.name, profiles, panels, _bootstrap(alike)),
                )
    for suffix, where, alike in _by_range(trained):
        watched = [run for run in alike if len(run.profiles.students) > 1]
        if mapped := _not_too_many(study, watched):
            some = ", the first run of each method" if len(mapped) < len(watched) else ""
            yield Picture(
                f"entropy_heatmap{suffix}",
                f"Entropy by block and epoch{where}",
                f"One column a probed epoch, one colour scale for all{some}. "
                "The values are those of the entropy evolution.",
                figures.entropy_heatmap({run.label: run.profiles.students for run in mapped}),
            )
        yield from _signature(alike, styles, suffix, where)
    latest = {run.label: run.latest for run in _not_too_many(study, trained) if run.latest is not None}
    for curve in SHOWN:
        if curve.kind == "pair" and any(profile.known(curve.name) for profile in latest.values()):
            figure = figures.pair_heatmap(curve.name, latest)
            yield Picture(f"{curve.name}_heatmap", *pair_caption(curve), figure)
    yield from _floors(runs)
    yield from _training(runs, styles)
    yield from _teacher_spectra(runs)
    yield from _run_spectra(study)


def _run_spectra(study: Study) -> Iterator[Picture]:
    """Of each run, or of the first of each method; a spectrum has no bins, and is there once a label."""
    latest = {
        run.label: run.latest for run in study.runs if run.latest and any(map(len, run.latest.spectrum))
    }
    firsts = dict.fromkeys(run.label for run in _not_too_many(study, study.runs) if run.label in latest)
    chosen = [*firsts][:_MOST_SPECTRA]
    left = [label for label in latest if label not in chosen]
    note = f" Not drawn, but in the table of spectra: {listed(left)}." if left else ""
    for label in chosen:
        yield from _spectra(f"spectra_{label}", f"Spectra of {label}", latest[label], label, note)


def _styles(study: Study) -> dict[str, LineStyle]:
    """One style a run in all figures, whichever of them it is in; of many runs one a method."""
    styles = run_styles([*dict.fromkeys(run.label for run in study.runs)], study.key_of)
    if len(styles) > _MOST_NAMED:
        for method in study.methods:
            if len(method.runs) > 1:
                title = f"{method.label}, {counted(len(method.runs), 'run')}"
                shared = {**styles[method.runs[0].name], "label": title}
                styles |= dict.fromkeys((run.name for run in method.runs), shared)
    return styles


def _panels(study: Study) -> dict[str, str]:
    """Label of a run → title of the panel that it shares with the other seeds of its method."""
    titles: dict[str, str] = {}
    for method in study.methods:
        measured_alike: dict[tuple, list[str]] = {}
        for run in method.runs:
            if run.latest is not None:
                measured_alike.setdefault((run.latest.probe_id, run.latest.bins), []).append(run.label)
        for members in measured_alike.values():
            if len(members) > 1:
                which = f" ({listed(members)})" if len(measured_alike) > 1 else ""
                titles |= dict.fromkeys(members, f"{method.label}, {counted(len(members), 'run')}{which}")
    return titles


def _not_too_many(study: Study, runs: Sequence[Run]) -> list[Run]:
    """The runs, of many the first of each method."""
    return list(runs) if len(runs) <= _MOST_NAMED else study.first_of_each_method(runs)


def _bootstrap(runs: Sequence[Run]) -> bool:
    """Whether the bands are intervals: they are of one kind in a figure."""
    return all(run.bootstrap for run in runs)


def _by_block(study: Study, styles: Mapping[str, LineStyle]) -> Iterator[Picture]:
    """Figures 1 and 2: one curve a run, the best checkpoint's or the latest."""
    bootstrap = _bootstrap(study.runs)
    ranges = {
        alike[0].range: {run.label: run.latest for run in alike if run.latest is not None}
        for *_, alike in _by_range(study.runs)
    }
    which = "One line a run: its best checkpoint, or the last one probed, or the analysed model."
    if any(len(method.runs) > 1 for method in study.methods):
        which += " Runs that differ by their seed alone share a colour."
    if len(ranges) > 1:
        yield Picture(
            "entropy_by_range",
            "Entropy by block, in several value ranges",
            f"Channel entropy (Eq. 5), and magnitude (Eq. 6). {which} {RANGES}",
            figures.entropy_by_range(ranges, styles, bootstrap),
        )
        return
    latest = next(iter(ranges.values()), {})
    teachers = distinct(one for run in study.runs for one in run.profiles.teachers())
    for curve in _BY_EPOCH:
        students = {label: profile for label, profile in latest.items() if profile.known(curve.name)}
        known = [teacher for teacher in teachers if teacher.known(curve.name)]
        if students or known:
            yield Picture(
                f"{curve.name}_by_block",
                f"{curve.title} by block",
                f"{about(curve, 'by_block')}. {which}",
                figures.curve_by_block(curve.name, students, known, styles, bootstrap),
            )


def _signature(
    runs: Sequence[Run], styles: Mapping[str, LineStyle], suffix: str = "", where: str = ""
) -> Iterator[Picture]:
    known = {run.label: run.profiles for run in runs if any(map(measured, run.profiles.students))}
    if any(len(profiles.students) > 1 for profiles in known.values()):
        yield Picture(
            f"signature_by_epoch{suffix}",
            f"Signature by epoch{where}",
            "The shape of the entropy curve over training: its lowest block, the smaller of its fall before "
            "and its rise after that block, the entropy of the last block, and the distance to the teacher's "
            "curve at matched depth.",
            figures.signature_by_epoch(known, styles),
        )


def _training(runs: Sequence[Run], styles: Mapping[str, LineStyle]) -> Iterator[Picture]:
    logged = {run.label: run.metrics for run in runs if metric_names(run.metrics)}
    if logged:
        floors = {run.label: run.loss_floors for run in runs}
        chance = {run.label: run.chance for run in runs if run.chance is not None}
        drawn = any(floor > 0 for of in floors.values() for floor in of.values())
        yield Picture(
            "training_curves",
            "Training",
            of_training(logged.values(), drawn),
            figures.training_curves(logged, styles, floors, chance),
        )
    if gates := {run.label: run.gates for run in runs if run.gates}:
        yield Picture(
            "gates_by_block",
            "Gates by block",
            "What each pair of blocks counts for in its term, by its block of the teacher; computed from the "
            "teacher on training images before the first step.",
            figures.gates_by_block(gates, styles),
        )


def _floors(runs: Sequence[Run]) -> Iterator[Picture]:
    if known := with_floors([named for run in runs for named in run.floors()]):
        yield Picture("floors_by_block", *FLOORS, figures.floors_by_block(known))


def _teacher_spectra(runs: Sequence[Run]) -> Iterator[Picture]:
    for teacher in distinct(one for run in runs for one in run.profiles.teachers()):
        yield from _spectra("teacher_spectra", f"Spectra of the teacher, {teacher.model}", teacher)


def _spectra(
    name: str, title: str, profile: Profile, run: str | None = None, note: str = ""
) -> Iterator[Picture]:
    heading = f"Channel spectrum, {run}" if run else None
    with suppress(UserError):  # published curves have none, nor have dead layers
        yield Picture(name, title, SPECTRUM + note, figures.spectra(profile, heading), run)


def _by_range(runs: Sequence[Run]) -> list[tuple[str, str, list[Run]]]:
    """Runs by the range of their bins, as entropies of different ranges are different quantities.

    Before them what follows the name and the title of their figures: nothing where there is one range.
    """
    ranges: dict[str, list[Run]] = {}
    for run in runs:
        if run.latest is not None:
            ranges.setdefault(run.range, []).append(run)
    several = len(ranges) > 1
    return [
        (f"_{name}", f", range {name}", alike) if several else ("", "", alike)
        for name, alike in ranges.items()
    ]


def _known(run: Run, name: str) -> bool:
    """Whether a curve is known of what stands for the run and of its students."""
    profiles = [run.latest] if run.latest else []
    return all(any(one.known(name) for one in some) for some in (profiles, run.profiles.students))
