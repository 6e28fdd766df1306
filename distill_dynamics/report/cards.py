"""The row of cards at the top of a page: student, teacher, gap, compression, time, as far as known."""

import math
from collections.abc import Iterator, Sequence
from statistics import stdev
from typing import Any, NamedTuple

from distill_dynamics.report.methods import Method
from distill_dynamics.report.provenance import Duration, duration, in_words
from distill_dynamics.report.records import Run
from distill_dynamics.report.study import Study
from distill_dynamics.runs.scores import OF_CLASSES, scores_of
from distill_dynamics.tables import Accuracy, accuracies
from distill_dynamics.text import counted, number, signed

_MOST_TEACHERS = 3


class Card(NamedTuple):
    """A number and what it is, in words."""

    title: str
    value: str
    details: list[str]


def cards(study: Study) -> list[Card]:
    """Of one training, or of the best method of several; [] where nothing was trained."""
    trained = [run for run in study.runs if run.kind == "fit"]
    student = [*_student(trained[0])] if len(trained) == 1 else [*_best_method(study)]
    return [*student, *_compression(trained), *_time(trained)]


def _student(run: Run) -> Iterator[Card]:
    known = accuracies(run.metrics)
    best, last = (known.get(who) for who in ("student, best", "student, last"))
    teachers = {who: accuracy for who, accuracy in known.items() if who.startswith("teacher")}
    title = scores_of(run.metrics)[0].title
    if best and last:
        end = "and last " if best == last else ""
        details = [f"{title} at the best {end}epoch, {best.epoch}"]
        details += _further(run, best)
        details += [] if best == last else [f"{last.top1:.2f} % at the last, {last.epoch}"]
        if untrained := known.get("student, untrained"):
            details.append(f"{untrained.top1:.2f} % before training{_chance(run)}")
        if averaged := known.get("EMA, best"):
            details.append(f"{averaged.top1:.2f} % with averaged weights (EMA), at epoch {averaged.epoch}")
        yield Card("Student", f"{best.top1:.2f} %", [*details, *_name(run, "student")])
    for who, teacher in [*teachers.items()][:_MOST_TEACHERS]:
        details = [title, *_further(run, teacher), *_name_of_teacher(run, who)]
        yield Card(f"{who[:1].upper()}{who[1:]}", f"{teacher.top1:.2f} %", details)
    if best and teachers:
        first = next(iter(teachers))
        yield _gap(best.top1 - teachers[first].top1, run.validation_images, first)


def _further(run: Run, accuracy: Accuracy) -> list[str]:
    """What else is known of features."""
    if scores_of(run.metrics) is OF_CLASSES:
        return []
    _, linear, rank = accuracy.values
    return [f"{number(linear, 2)} % linear, effective rank {number(rank, 1)}"]


def _chance(run: Run) -> str:
    return "" if run.chance is None else f", {run.chance:.4g} % by chance"


def _name(run: Run, role: str) -> list[str]:
    model = (run.config.get("model") or {}).get(role)
    arguments = (model.get("init_args") or model) if isinstance(model, dict) else {}
    name = arguments.get("name") if isinstance(arguments, dict) else None
    start = run.last_start.get(role)
    if name is None and isinstance(start, dict):  # of a checkpoint that tells what it is of
        name = start.get("name")
    return [str(name)] if name else []


def _name_of_teacher(run: Run, who: str) -> list[str]:
    """The model's, of "teacher" or "teacher NAME"."""
    if who == "teacher":
        return _name(run, who)
    named = run.last_start.get("teachers")
    of = named.get(who.removeprefix("teacher ")) if isinstance(named, dict) else None
    name = of.get("name") if isinstance(of, dict) else None
    return [str(name)] if name else []


def _gap(difference: float, images: int | None, who: str = "teacher") -> Card:
    where = f" on {images:,} validation images" if images else ""
    if abs(difference) < 0.005:
        return Card("Gap", "none", [f"level with the {who}{where}"])
    side = "below" if difference < 0 else "above"
    return Card("Gap", f"{abs(difference):.2f} points", [f"{side} the {who}{where}"])


def _best_method(study: Study) -> Iterator[Card]:
    """Of methods that were trained to their end on one data set."""
    finished = study.finished
    if not finished or len({run.data for method in finished for run in method.runs} - {None}) > 1:
        return
    if len(titles := {method.score.title for method in finished}) > 1:
        return
    (title,) = titles
    best = max(finished, key=lambda method: method.top1)
    scores = [*best.by_seed().values()]
    spread = f" ± {stdev(scores):.2f} over {len(scores)} seeds" if len(scores) > 1 else ", one seed"
    details = [best.label, f"mean {title}{spread}" if len(scores) > 1 else f"{title}{spread}"]
    yield Card("Highest student", f"{best.top1:.2f} %", [*details, *_against(study, best)])
    teachers = sorted({a.top1 for a in map(_teacher, study.runs) if a})
    if teachers:
        value = " to ".join(dict.fromkeys(f"{top1:.2f}" for top1 in (teachers[0], teachers[-1])))
        yield Card("Teacher", f"{value} %", [title if len(teachers) == 1 else f"{len(teachers)} teachers"])
    own = sorted({a.top1 for a in map(_teacher, best.runs) if a})
    if len(own) == 1:
        yield _gap(best.top1 - own[0], best.runs[0].validation_images)


def _teacher(run: Run) -> Accuracy | None:
    return accuracies(run.metrics).get("teacher")


def _against(study: Study, method: Method) -> list[str]:
    """The method beside its baseline."""
    for contrast in study.contrasts:
        if contrast.method is method and contrast.verdict and contrast.baseline is not None:
            told = contrast.verdict if contrast.interval is None else f"{contrast.verdict} (95 %)"
            return [f"{signed(contrast.difference)} points against {contrast.baseline.label}: {told}"]
    return []


_ROLES = ("student", "teacher")
_LESS = {
    "gflop": ("fewer operations", "more operations"),
    "ms_1": ("faster for one image", "slower for one image"),
}


def _compression(runs: Sequence[Run]) -> Iterator[Card]:
    """What the student costs of its teacher, by the last start of each run."""
    starts = [run.last_start for run in runs]
    ratios = {
        key: [
            teacher / student
            for start in starts
            if (student := _cost(start, "student", key)) and (teacher := _cost(start, "teacher", key))
        ]
        for key in ("parameters", *_LESS)
    }
    if sizes := ratios["parameters"]:
        details = [_compared(ratios[key], *words) for key, words in _LESS.items() if ratios[key]]
        if len(runs) == 1:
            own, whole = (number(_cost(starts[0], who, "parameters") / 1e6, 2) for who in _ROLES)
            several = len(starts[0].get("teachers") or ()) > 1
            of = (
                "beside the first teacher's" if several else "of" if sizes[0] >= 1 else "beside the teacher's"
            )
            details.insert(0, f"{own} M {of} {whole} M parameters")
        yield Card("Compression", f"{_between(sizes)} ×" if max(sizes) >= 1.05 else "none", details)
    elif len(runs) == 1 and (size := _cost(starts[0], "student", "parameters")):
        time = _cost(starts[0], "student", "ms_1")
        details = ["parameters", *([f"{time:.3g} ms an image"] if time else [])]
        yield Card("Size", f"{size / 1e6:.2f} M", details)


def _cost(start: dict[str, Any], who: str, key: str) -> float:
    """A cost of a model as run.json has it; 0 where it is not known."""
    facts = start.get(f"{who}_cost")
    value = facts.get(key) if isinstance(facts, dict) else None
    return float(value) if isinstance(value, int | float) and 0 < value < 1e18 else 0.0


def _compared(ratios: Sequence[float], less: str, more: str) -> str:
    """Such as "1.1 to 2.1 × faster", and "1.2 × slower" where the student costs more than its teacher."""
    low, high = min(ratios), max(ratios)
    if high < 0.95:
        return f"{_between([1 / ratio for ratio in ratios])} × {more}"
    if low < 0.95:
        return f"{1 / low:.1f} × {more} to {high:.1f} × {less}"
    return f"{_between(ratios)} × {less}"


def _between(values: Sequence[float]) -> str:
    return " to ".join(dict.fromkeys(f"{value:.1f}" for value in (min(values), max(values))))


def _time(runs: Sequence[Run]) -> Iterator[Card]:
    times = [time for run in runs if (time := duration(run)).seconds > 0]
    if not times:
        return
    total = Duration(math.fsum(time.seconds for time in times), all(time.whole for time in times))
    if len(runs) == 1:
        details = [f"training and probing, {counted(runs[0].epochs, 'epoch')}", *_where(runs[0])]
    else:
        known = f"{len(times)} of " if len(times) < len(runs) else ""
        details = [f"in all, of {known}{counted(len(runs), 'run')}"]
    yield Card("Time", in_words(total), details)


def _where(run: Run) -> list[str]:
    devices = run.last_start.get("devices")
    return [f"on {devices}"] if isinstance(devices, str) else []
