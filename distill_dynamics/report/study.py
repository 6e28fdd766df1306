"""The runs of a report as one study: its methods, and the baseline that each is compared with."""

import math
import warnings
from collections import Counter
from collections.abc import Sequence
from textwrap import shorten
from typing import NamedTuple

from distill_dynamics.report.methods import Method, is_below, make_method
from distill_dynamics.report.records import Run, counted, listed

# Settings that run.json holds, not config.yaml: unknown where it cannot be read.
_FACTS = ("images a step", "data")
_TERMS = ("model.terms",)
_DISTILLATION = (
    *_TERMS,
    "model.teacher",
    "model.alpha",
    "model.temperature",
    "model.teacher_cache",
    "model.teacher_precision",
    "model.shard_teacher",
)


class Contrast(NamedTuple):
    """A method beside its baseline: SoftKD with all other settings equal, else plain training."""

    method: Method
    baseline: Method | None
    """The method itself where it is what others are compared with; None where there is none."""
    reason: str = ""
    """Why there is none, although SoftKD was trained."""
    difference: float = math.nan
    """Of the mean best top-1, points."""
    interval: tuple[float, float] | None = None
    """95 % of the difference, points; None where a method has one seed."""

    @property
    def verdict(self) -> str:
        """What the seeds tell of the difference."""
        if self.interval is None:
            return ""
        low, high = self.interval
        return "higher" if low > 0 else "lower" if high < 0 else "not beyond chance"


class Study:
    """Made once a report; tables, findings and figures read it."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = list(runs)
        self.methods = _methods(self.runs)
        self.contrasts = [_contrast(method, self.methods) for method in self.methods]
        self.key_of = {run.name: method.key for method in self.methods for run in method.runs}
        """Run's name → key of its method; analysed models have none."""

    @property
    def finished(self) -> list[Method]:
        """The methods whose results are final and known."""
        return [method for method in self.methods if method.finished and method.by_seed()]

    def first_of_each_method(self, runs: Sequence[Run]) -> list[Run]:
        """Of these runs the first of each method, and those of no method."""
        firsts: dict[str, Run] = {}
        for run in runs:
            firsts.setdefault(self.key_of.get(run.name, run.label), run)
        return list(firsts.values())


def _methods(runs: Sequence[Run]) -> list[Method]:
    """The runs of `fit`, sorted into methods in order of their first run."""
    methods: dict[str, Method] = {}
    for run in runs:
        if run.kind == "fit":
            method = make_method(run)
            # An unfinished run would pull the mean down; without a model's settings nothing is known.
            alone = not run.finished or not run.config.get("model")
            first = methods.setdefault(f"run {run.name}" if alone else method.key, method)
            if first is not method:
                first.runs.append(run)
    for method, label in zip(methods.values(), _labels([*methods.values()]), strict=True):
        method.label = label
    return list(methods.values())


def _labels(methods: Sequence[Method]) -> list[str]:
    """The shortest name of each that no other has: with layers, options, β, epochs, teacher or runs."""
    short = [f"{m.name} {m.layers}".strip() for m in methods]
    titled = [f"{m.title} {m.layers}".strip() for m in methods]
    weighted = [
        f"{name}, β {m.weight}" if m.weight else name for name, m in zip(titled, methods, strict=True)
    ]
    epochs = [counted(m.epochs, "epoch") if m.finished else m.epochs for m in methods]
    teachers = [m.settings.get("model.teacher.init_args.name", "no teacher") for m in methods]
    names = [_run_names(m) for m in methods]
    ways = [short, titled, weighted]
    for base, details in ((weighted, epochs), (weighted, teachers), (short, names)):
        ways.append([f"{name} ({detail})" for name, detail in zip(base, details, strict=True)])
    labels = dict[int, str]()
    for way in ways:
        counts = Counter(way)
        for number, name in enumerate(way):
            if counts[name] == 1 or way is ways[-1]:
                labels.setdefault(number, name)
    return [labels[number] for number in range(len(methods))]


def _run_names(method: Method) -> str:
    first, *others = (run.name for run in method.runs)
    return f"{first} and {len(others)} more" if len(others) > 1 else ", ".join([first, *others])


def _contrast(method: Method, methods: Sequence[Method]) -> Contrast:
    if not method.finished:
        return Contrast(method, None, "not finished")
    finished = [other for other in methods if other.finished and other.by_seed()]
    softkd = [other for other in finished if other.name == "SoftKD"]
    for other in (*softkd, *(other for other in finished if other.name == "no distillation")):
        if other is method and (method in softkd or not softkd):
            return Contrast(method, method)
        if other is not method and not unknown(method, other) and not differences(method, other):
            bounds = interval(method.by_seed(), other.by_seed())
            return Contrast(method, other, "", method.top1 - other.top1, bounds)
    if not softkd:
        return Contrast(method, None)
    nearest = min(softkd, key=lambda other: len(differences(method, other)))
    return Contrast(method, None, _obstacle(method, nearest))


def interval(one: dict[str, float], other: dict[str, float]) -> tuple[float, float] | None:
    """95 % interval of the difference of two means over seeds; None where one of them has one seed.

    Student's t of the differences seed by seed where both have the same seeds, else Welch's.
    """
    if min(len(one), len(other)) < 2:
        return None
    from scipy import stats  # a second to load

    with warnings.catch_warnings(action="ignore"):  # of differences that are all equal
        if one.keys() == other.keys():
            test = stats.ttest_rel([*one.values()], [other[seed] for seed in one])
        else:
            test = stats.ttest_ind([*one.values()], [*other.values()], equal_var=False)
        low, high = map(float, test.confidence_interval(0.95))
    return (low, high) if math.isfinite(low) else None


def differences(a: Method, b: Method) -> list[str]:
    """Settings in which two methods differ beside the method itself: terms, or all of the distillation.

    What is `unknown` of one of them is no difference.
    """
    missing = {what for _, what in unknown(a, b)}
    if "settings" in missing:
        return []
    free = (*(_DISTILLATION if "no distillation" in (a.name, b.name) else _TERMS), *missing)
    keys = [key for key in {**a.settings, **b.settings} if not is_below(key, free)]
    return [key for key in keys if a.settings.get(key) != b.settings.get(key)]


def unknown(a: Method, b: Method) -> list[tuple[Method, str]]:
    """What is not known of one of two methods, and so may differ: "settings", or a fact of run.json."""
    missing = []
    for one, other in ((a, b), (b, a)):
        if not one.runs[0].config.get("model"):
            missing.append((one, "settings"))
        else:
            missing += [(one, fact) for fact in _FACTS if fact in other.settings and fact not in one.settings]
    return missing


def _obstacle(method: Method, other: Method) -> str:
    """Why `other` is no baseline."""
    reasons = []
    for one in (method, other):
        if facts := [what for who, what in unknown(method, other) if who is one]:
            reasons.append(f"{listed(facts)} of {one.label} not known")
    keys = differences(method, other)
    reasons += [
        f"{key} is {_short(method.settings.get(key))}, not {_short(other.settings.get(key))}"
        for key in keys[:3]
    ]
    if len(keys) > 3:
        reasons.append(f"{len(keys) - 3} more settings differ")
    return "; ".join(reasons)


def _short(value: str | None) -> str:
    return "none" if value is None else shorten(value, 60)
