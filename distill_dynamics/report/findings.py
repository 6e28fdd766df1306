"""What a reader wants first, in a few plain sentences; the tables hold the rest. Never a cause."""

import math
from typing import NamedTuple

from distill_dynamics.dynamics.profile import Profile
from distill_dynamics.dynamics.signature import change_error, evolution, gap, rebound
from distill_dynamics.figures.order import alike, same_bins
from distill_dynamics.report.records import Run
from distill_dynamics.report.study import Study
from distill_dynamics.report.tables import lowest_block, trained_probes
from distill_dynamics.tables import measured, shape
from distill_dynamics.text import number, signed, with_error


def findings(study: Study) -> list[str]:
    """At most some six sentences about accuracy, and about what the entropy curves show."""
    trained = [run for run in study.runs if run.kind == "fit"]
    sentences = _trainings(study) if len(trained) > 1 else []  # of one its cards tell
    sentences += _one_curve(study.runs[0]) if len(study.runs) == 1 else _curves(study)
    return sentences or ["No curve has been measured."]


# --- accuracy -----------------------------------------------------------------------------------------


def _trainings(study: Study) -> list[str]:
    """The highest top-1, and what seeds and validation images do not tell."""
    finished = study.finished
    if not finished:
        return []
    if len(titles := {method.score.title for method in finished}) > 1:
        return [f"Some runs are known by {' and some by '.join(sorted(titles))}: none has won."]
    if len({run.data for method in finished for run in method.runs} - {None}) > 1:
        return ["The runs were validated on different data: none has won."]
    (title,) = titles
    first = max(finished, key=lambda method: method.top1)  # of equals, the first given
    seeds = len(first.by_seed())
    mean = f", mean of {seeds} seeds" if seeds > 1 else ""
    sentences = [f"Highest {title}: {first.label} with {first.top1:.2f} %{mean}."]
    both = [*study.contrasts, *study.over_plain]
    compared = [contrast for contrast in both if not math.isnan(contrast.difference)]
    if any(contrast.verdict == "one seed" for contrast in compared):
        sentences.append("With one seed a difference cannot be told from the spread over seeds.")
    if sum(contrast.interval is not None for contrast in compared) > 1:
        sentences.append("Each interval is of one contrast: of many, some leave 0 out by chance.")
    counts = {run.validation_images for method in finished for run in method.runs}
    if len(finished) > 1 and len(counts) == 1 and (images := counts.pop()):
        variance = max(0.0, *(method.top1 / 100 * (1 - method.top1 / 100) for method in finished))
        margin = 1.96 * 100 * math.sqrt(2 * variance / images)
        sentences.append(
            f"Two models may differ by up to {margin:.2f} points by the choice of the {images:,} validation "
            "images alone (95 %, binomial; less where both err on the same images)."
        )
    return sentences


# --- curves -------------------------------------------------------------------------------------------


def _one_curve(run: Run) -> list[str]:
    latest, trained = run.latest, trained_probes(run)
    if latest is None:
        return []
    if not measured(latest):
        return ["The entropy is not known for every layer."]
    if len(latest.layers) == 1:
        return ["One layer was probed: that is no curve over depth."]
    sentence = f"Entropy is lowest at block {lowest_block(latest, with_depth=True)}{_when(run, latest)}"
    first = next((student for student in run.profiles.students if measured(student)), latest)
    if first is not latest:
        sentence += f", and at block {lowest_block(first)} at epoch {first.epoch}"
    sentences = [f"{sentence}."]
    if len(trained) > 1:
        start, end = trained[0], trained[-1]
        change = evolution(trained)
        by_first = with_error(signed(change.first_change), change_error(start, end, 0), 2)
        by_last = with_error(signed(change.last_change), change_error(start, end, -1), 2)
        sentences.append(
            f"From epoch {start.epoch} to {end.epoch} the entropy of the first block changed by {by_first} "
            f"bits, of the last block by {by_last} bits."
        )
    if suppressed := _suppression(run):
        sentences.append(f"The last block has the lowest entropy {suppressed}.")
    if nearest := _distance(run):
        sentences.append(
            f"The curve is {nearest.bits:.2f} bits from the teacher's (root mean square at matched depth), "
            f"which is lowest at block {lowest_block(nearest.teacher)} of {len(nearest.teacher.layers)}."
        )
    return sentences


def _when(run: Run, latest: Profile) -> str:
    if latest is run.profiles.best:
        return " in the best checkpoint" + ("" if latest.epoch is None else f" (epoch {latest.epoch})")
    return "" if latest.epoch is None else f" at epoch {latest.epoch}"


def _suppression(run: Run) -> str:
    """The late-layer suppression and rebound of the paper's Sections 5.2 and 5.4; "" where there is none."""
    trained = trained_probes(run)
    if not trained or (until := evolution(trained).last_lowest_until) is None:
        return ""
    rises, back = evolution(trained).last_rises_from, rebound(trained)
    end = "at every probe after epoch 0" if until == trained[-1].epoch else f"until epoch {until}"
    if rises is None or back.certain is False:
        return end
    return (
        f"{end}, and rises by {with_error(number(back.value, 2), back.error, 2)} bits from epoch {rises} on"
    )


def _curves(study: Study) -> list[str]:
    shapes: dict[str, list[str]] = {}
    for run in study.runs:
        if run.latest is not None:
            form = shape(run.latest) if len(run.latest.layers) > 1 else "unknown: one layer"
            shapes.setdefault(form, []).append(run.name)
    sentences = []
    if shapes:
        forms = "; ".join(f"{form} in {study.listed(names)}" for form, names in shapes.items())
        sentences.append(f"Shape of the entropy curve: {forms}.")
    low: dict[str, list[str]] = {}
    for run in study.runs:
        if text := _suppression(run):
            low.setdefault(text, []).append(run.name)
    if low:
        when = "; ".join(f"in {study.listed(names)} {text}" for text, names in low.items())
        sentences.append(f"The last block has the lowest entropy {when}.")
    return [*sentences, *_nearest(study)]


class _Distance(NamedTuple):
    bits: float
    """Root mean square at matched depth."""
    run: Run
    teacher: Profile


def _distance(run: Run) -> _Distance | None:
    """Student to teacher; None where they were not measured on the same images."""
    student, teacher = run.latest, run.profiles.teacher
    if student is None or teacher is None or student.probe_id != teacher.probe_id:
        return None
    if not all(measured(profile) and len(profile.layers) > 1 for profile in (student, teacher)):
        return None
    return _Distance(gap(student, teacher).entropy_distance, run, teacher)


def _nearest(study: Study) -> list[str]:
    """Which best checkpoint is nearest to the teacher's entropy, of runs with one teacher and one range."""
    known = [
        distance
        for run in study.runs
        if run.finished and run.profiles.best is not None and (distance := _distance(run)) is not None
    ]
    if len(known) < 2:
        return []
    first = known[0]
    for _, run, teacher in known[1:]:
        one = first.teacher
        if run.range != first.run.range or one.probe_id != teacher.probe_id:
            return []
        if not (same_bins(one, teacher) and alike(one, teacher)):
            return []
    bits = {distance.run.name: f"{distance.bits:.2f}" for distance in known}
    ends = [min(bits.values(), key=float), max(bits.values(), key=float)]
    near, far = (study.listed([name for name, value in bits.items() if value == end]) for end in ends)
    how = "root mean square at matched depth"
    if ends[0] == ends[1]:
        return [f"Distance to the teacher's entropy ({how}): {ends[0]} bits in {near}."]
    least, most = f"least in {near} ({ends[0]} bits)", f"most in {far} ({ends[1]} bits)"
    return [f"Distance to the teacher's entropy ({how}): {least}, {most}."]
