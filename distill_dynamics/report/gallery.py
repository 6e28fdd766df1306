"""Which figures a report of these runs shows, under which names, and with which captions."""

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from matplotlib import style
from matplotlib.figure import Figure

from distill_dynamics import figures
from distill_dynamics.dynamics.profile import Profile
from distill_dynamics.dynamics.statistics import SHOWN, Statistic
from distill_dynamics.errors import UserError
from distill_dynamics.figures.look import Looks, run_looks
from distill_dynamics.figures.order import distinct
from distill_dynamics.files import atomic_write
from distill_dynamics.report.methods import labels, methods, methods_by_run
from distill_dynamics.report.records import Run, counted, listed
from distill_dynamics.runs.profiles import RunProfiles
from distill_dynamics.tables import measured

_PRINT = {"pdf.fonttype": 42}  # text stays text, as publishers ask


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

_LINES = "One line a probed epoch, light to dark; dashed orange the best checkpoint"
_TEACHER = f"{_LINES}, dash-dotted the teacher, where there are any."
_SPECTRUM = (
    "Mean magnitude of the Fourier transform along the channels (Eq. 2) of early, middle and late blocks: "
    "the paper's Figure 3."
)
_SEEDS = " Runs that differ by their seed alone share a colour."
_RANGES = (
    "With one range for all layers (the paper's) a layer's entropy holds log2 of its scale, so that it "
    "follows the magnitude; with each layer's own range it holds only how the values are spread within that "
    "range, and where layers are divided by their magnitude first (scaled) only how they are spread about "
    "it: a shape that stands in the first alone is one of scale."
)


def gallery(runs: Sequence[Run]) -> list[Picture]:
    """The figures for which these runs have something to show, in the order of a report."""
    drawn = _of_one(runs[0]) if len(runs) == 1 else _of_several(runs, _looks(runs))
    return _uniquely_named(list(drawn))


def _looks(runs: Sequence[Run]) -> Looks:
    """One look a run in all figures, whichever of them it is in; of many runs one a method."""
    looks = run_looks([*dict.fromkeys(run.label for run in runs)], methods_by_run(runs))
    if len(looks) > _MOST_NAMED:
        found = methods(runs)
        for method, label in zip(found, labels(found), strict=True):
            if len(method.runs) > 1:
                title = f"{label}, {counted(len(method.runs), 'run')}"
                alike = looks[method.runs[0].name] | {"label": title}
                looks |= dict.fromkeys((run.name for run in method.runs), alike)
    return looks


def save(pictures: Sequence[Picture], folder: Path) -> None:
    """Write each figure as NAME.png (300 dpi) and NAME.pdf (text as text); equal figures, equal files."""
    for picture in pictures:
        with style.context(["default", _PRINT]):
            with atomic_write(folder / f"{picture.name}.png") as partial:
                picture.figure.savefig(partial, format="png", dpi=300)
            with atomic_write(folder / f"{picture.name}.pdf") as partial:
                picture.figure.savefig(partial, format="pdf", metadata={"CreationDate": None})


def _of_one(run: Run) -> Iterator[Picture]:
    students, teacher, best = run.profiles
    if students:
        captions = {
            f"{curve.name}_evolution": (f"{curve.title} by block", f"{curve.about}. {_TEACHER}")
            for curve in SHOWN
        } | {
            "entropy_heatmap": (
                "Entropy by block and epoch",
                "The student's entropy again, as colour: one column a probed epoch.",
            ),
            **{f"{curve.name}_heatmap": _pair_title(curve) for curve in SHOWN if curve.kind == "pair"},
            "student_spectra": ("Spectra of the student", _SPECTRUM),
        }
        drawn = figures.of_run(students, teacher, best, run.bootstrap)
        spectra = drawn.pop("student_spectra", None)
        yield from (Picture(name, *captions[name], figure) for name, figure in drawn.items())
        yield from _training([run])
        yield from _signature([run])
        yield from _teacher_spectra([run])
        if spectra:
            yield Picture("student_spectra", *captions["student_spectra"], spectra)
    else:
        yield from _by_block([run])
        yield from _training([run])
        yield from _teacher_spectra([run])
        if run.latest is not None:
            yield from _spectra("spectra", "Spectra", run.latest)


def _of_several(runs: Sequence[Run], looks: Looks) -> Iterator[Picture]:
    yield from _by_block(runs, looks)
    trained = [run for run in runs if run.profiles.students]
    ranges = _by_range(trained)
    # Entropies of different ranges are different quantities, and share no axis.
    titles = {name: (f"_{name}", f", range {name}") if len(ranges) > 1 else ("", "") for name in ranges}
    for curve in SHOWN:
        # What has no bins is drawn once of a model that was analysed in several ranges.
        once = [*{run.label: run for run in trained if _known(run.latest, curve.name)}.values()]
        for value_range, alike in ranges.items() if curve.binned else [(None, once)]:
            suffix, where = titles[value_range] if value_range is not None else ("", "")
            if alike:
                yield Picture(
                    f"{curve.name}_by_method{suffix}",
                    f"{curve.title} evolution by method{where}",
                    f"{_what(curve, 'by_method')}. {_lines(alike)}",
                    figures.curve_by_method(curve.name, *_by_method(alike)),
                )
    for value_range, alike in ranges.items():
        suffix, where = titles[value_range]
        watched = [run for run in alike if len(run.profiles.students) > 1]
        if mapped := _not_too_many(watched):
            some = ", the first run of each method" if len(mapped) < len(watched) else ""
            yield Picture(
                f"entropy_heatmap{suffix}",
                f"Entropy by block and epoch{where}",
                f"One column a probed epoch, one colour scale for all{some}. "
                "The values are those of the entropy evolution.",
                figures.entropy_heatmap({run.label: run.profiles.students for run in mapped}),
            )
        yield from _signature(alike, looks, suffix, where)
    for curve in SHOWN:
        mapped = [run for run in _not_too_many(trained) if _known(run.latest, curve.name)]
        if curve.kind == "pair" and mapped:
            latest = {run.label: run.latest for run in mapped if run.latest is not None}
            yield Picture(
                f"{curve.name}_heatmap", *_pair_title(curve), figures.pair_heatmap(curve.name, latest)
            )
    yield from _training(runs, looks)
    yield from _teacher_spectra(runs)
    # Nor has a spectrum.
    latest = {run.label: run.latest for run in runs if run.latest and any(map(len, run.latest.spectrum))}
    first = dict.fromkeys(run.label for run in _not_too_many(runs) if run.label in latest)
    chosen = [*first][:_MOST_SPECTRA]
    left = [label for label in latest if label not in chosen]
    note = f" Not drawn, but in the table of spectra: {listed(left)}." if left else ""
    for label in chosen:
        yield from _spectra(f"spectra_{label}", f"Spectra of {label}", latest[label], label, note)


def _pair_title(curve: Statistic) -> tuple[str, str]:
    return (
        f"{curve.title}, each pair of blocks",
        "Every block of the student beside every block of the teacher.",
    )


def _by_method(runs: Sequence[Run]) -> tuple[dict[str, RunProfiles], dict[str, str], bool]:
    """What the figures by method take: Profiles by run, and the panel that the seeds of a method share."""
    return {run.label: run.profiles for run in runs}, _panels(runs), _bootstrap(runs)


def _not_too_many(runs: Sequence[Run]) -> list[Run]:
    """The runs, of many the first of each method."""
    if len(runs) <= _MOST_NAMED:
        return list(runs)
    owners, firsts = methods_by_run(runs), dict[str, Run]()
    for run in runs:
        firsts.setdefault(owners.get(run.name, run.label), run)
    return list(firsts.values())


def _panels(runs: Sequence[Run]) -> dict[str, str]:
    found, titles = methods(runs), dict[str, str]()
    for method, label in zip(found, labels(found), strict=True):
        measured_alike: dict[tuple, list[str]] = {}
        for run in method.runs:
            if run.latest is not None:
                measured_alike.setdefault((run.latest.probe_id, run.latest.bins), []).append(run.label)
        for members in measured_alike.values():
            if len(members) > 1:
                which = f" ({listed(members)})" if len(measured_alike) > 1 else ""
                titles |= dict.fromkeys(members, f"{label}, {counted(len(members), 'run')}{which}")
    return titles


def _lines(runs: Sequence[Run]) -> str:
    shared = " Runs that differ by their seed alone share a panel." if _panels(runs) else ""
    return f"{_LINES}. A panel a method, one y axis; teachers have panels of their own.{shared}"


def _bootstrap(runs: Sequence[Run]) -> bool:
    """Whether the bands are intervals: they are of one kind in a figure."""
    return all(run.bootstrap for run in runs)


def _by_block(runs: Sequence[Run], looks: Looks | None = None) -> Iterator[Picture]:
    """Figures 1 and 2: one curve a run, the best checkpoint's or the latest."""
    owners, bootstrap = methods_by_run(runs), _bootstrap(runs)
    ranges = {
        value_range: {run.label: run.latest for run in alike if run.latest is not None}
        for value_range, alike in _by_range(runs).items()
    }
    teachers = distinct(run.profiles.teacher for run in runs)
    which = "One line a run: its best checkpoint, or the last one probed, or the analysed model."
    which += _SEEDS if len(set(owners.values())) < len(owners) else ""
    if len(ranges) > 1:
        yield Picture(
            "entropy_by_range",
            "Entropy by block, in several value ranges",
            f"Channel entropy (Eq. 5), and magnitude (Eq. 6). {which} {_RANGES}",
            figures.entropy_by_range(ranges, looks, bootstrap),
        )
        return
    latest = next(iter(ranges.values()), {})
    if not latest and not teachers:
        return
    for curve in SHOWN:
        always = curve.name == "entropy"
        known = {label: profile for label, profile in latest.items() if always or _known(profile, curve.name)}
        taught = [teacher for teacher in teachers if always or _known(teacher, curve.name)]
        if known or taught:
            yield Picture(
                f"{curve.name}_by_block",
                f"{curve.title} by block",
                f"{_what(curve, 'by_block')}. {which}",
                figures.curve_by_block(curve.name, known, taught, looks, bootstrap),
            )


def _signature(
    runs: Sequence[Run], looks: Looks | None = None, suffix: str = "", where: str = ""
) -> Iterator[Picture]:
    known = {run.label: run.profiles for run in runs if any(map(measured, run.profiles.students))}
    if any(len(profiles.students) > 1 for profiles in known.values()):
        yield Picture(
            f"signature_by_epoch{suffix}",
            f"Signature by epoch{where}",
            "The shape of the entropy curve over training: its lowest block, the smaller of its fall before "
            "and its rise after that block, the entropy of the last block, and the distance to the teacher's "
            "curve at matched depth.",
            figures.signature_by_epoch(known, looks),
        )


def _training(runs: Sequence[Run], looks: Looks | None = None) -> Iterator[Picture]:
    logged = {run.label: run.metrics for run in runs if _trains(run)}
    if logged:
        yield Picture(
            "training_curves",
            "Training",
            "Each loss term, and top-1 on the validation set beside the teacher's.",
            figures.training_curves(logged, looks),
        )


def _teacher_spectra(runs: Sequence[Run]) -> Iterator[Picture]:
    for teacher in distinct(run.profiles.teacher for run in runs):
        yield from _spectra("teacher_spectra", f"Spectra of the teacher, {teacher.model}", teacher)


def _spectra(
    name: str, title: str, profile: Profile, run: str | None = None, note: str = ""
) -> Iterator[Picture]:
    heading = f"Channel spectrum, {run}" if run else None
    with suppress(UserError):  # published curves have none, nor have dead layers
        yield Picture(name, title, _SPECTRUM + note, figures.spectra(profile, heading), run)


def _by_range(runs: Sequence[Run]) -> dict[str, list[Run]]:
    ranges: dict[str, list[Run]] = {}
    for run in runs:
        if run.latest is not None:
            ranges.setdefault(run.range, []).append(run)
    return ranges


def _known(profile: Profile | None, name: str) -> bool:
    return profile is not None and profile.known(name)


_PAPER = {
    ("entropy", "by_block"): ": the paper's Figure 1",
    ("magnitude", "by_block"): ": the paper's Figure 2",
    ("entropy", "by_method"): ": the paper's Figure 4",
}


def _what(curve: Statistic, figure: str) -> str:
    return curve.about + _PAPER.get((curve.name, figure), "")


def _trains(run: Run) -> bool:
    names = {name for row in run.metrics for name in row}
    return bool(names & {"val/loss", "val/acc1"}) or any(name.startswith("train/loss_") for name in names)


def _uniquely_named(pictures: list[Picture]) -> list[Picture]:
    """Names that are good for files and ids, a number behind those that would be there twice."""
    found: dict[str, Picture] = {}
    for picture in pictures:
        stem = name = re.sub(r"[^A-Za-z0-9_-]+", "-", picture.name)
        number = 1
        while name in found:
            number += 1
            name = f"{stem}-{number}"
        found[name] = replace(picture, name=name)
    return list(found.values())
