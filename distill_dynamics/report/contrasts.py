"""A method beside its baseline: which that is, the difference and what the seeds tell of it."""

import math
import warnings
from collections.abc import Sequence
from textwrap import shorten
from typing import NamedTuple

from distill_dynamics.report.methods import PLAIN, SOFTKD, Method, is_below
from distill_dynamics.text import listed

# Settings that run.json holds, not config.yaml: unknown where it cannot be read.
_FACTS = ("images a step", "data")
_TERMS = ("model.terms", "model.alpha", "model.temperature")
_DISTILLATION = (
    *_TERMS,
    "model.teacher",
    "model.teachers",
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
    """95 % of the difference, points; None where a method has one seed, or the seeds show no spread."""

    @property
    def verdict(self) -> str:
        """What the seeds tell of the difference; "" without a baseline."""
        if self.baseline is None or self.baseline is self.method:
            return ""
        if min(len(self.method.by_seed()), len(self.baseline.by_seed())) < 2:
            return "one seed"
        if self.interval is None:
            return "equal in all seeds: no spread"
        low, high = self.interval
        return "higher" if low > 0 else "lower" if high < 0 else "not beyond chance"


def make_contrast(method: Method, methods: Sequence[Method]) -> Contrast:
    """The method beside its baseline among the others; see `Contrast`."""
    if not method.finished:
        return Contrast(method, None, "not finished")
    finished = [one for one in methods if one.finished and one.by_seed() and one.score == method.score]
    softkd = [other for other in finished if other.name == SOFTKD]
    for other in (*softkd, *(other for other in finished if other.name == PLAIN)):
        if other is method and (method in softkd or not softkd):
            return Contrast(method, method)
        if contrast := _contrast(method, other):
            return contrast
    if not softkd:
        return Contrast(method, None)
    nearest = min(softkd, key=lambda other: len(differences(method, other)))
    return Contrast(method, None, _obstacle(method, nearest))


def over_plain(method: Method, methods: Sequence[Method]) -> Contrast | None:
    """The method beside plain training with all other settings equal; None where there is none."""
    plain = [other for other in methods if other.name == PLAIN and other.finished and other.by_seed()]
    plain = [other for other in plain if other.score == method.score]
    found = [_contrast(method, other) for other in plain] if method.finished and method.by_seed() else []
    return next((contrast for contrast in found if contrast), None)


def _contrast(method: Method, other: Method) -> Contrast | None:
    """None where they are one, or differ in more than the method."""
    if other is method or unknown(method, other) or differences(method, other):
        return None
    bounds = interval(method.by_seed(), other.by_seed())
    return Contrast(method, other, "", method.top1 - other.top1, bounds)


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
    # Differences that are all equal, as few images make them, say nothing of the spread.
    return (low, high) if math.isfinite(low) and high - low > 1e-6 else None


def differences(a: Method, b: Method) -> list[str]:
    """Settings in which two methods differ beside the method itself: terms, or all of the distillation.

    What is `unknown` of one of them is no difference.
    """
    missing = {what for _, what in unknown(a, b)}
    if "settings" in missing:
        return []
    free = (*(_DISTILLATION if PLAIN in (a.name, b.name) else _TERMS), *missing)
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
