"""Tables of several runs: contrasts, methods and accuracies, value ranges, settings, entropy over epochs."""

import math
from collections.abc import Iterator, Sequence
from itertools import combinations
from statistics import fmean, stdev
from textwrap import wrap
from typing import NamedTuple

import numpy as np

from distill_dynamics.dynamics.profile import Profile
from distill_dynamics.dynamics.signature import change_error, evolution, rebound, signature
from distill_dynamics.report.contrasts import Contrast
from distill_dynamics.report.methods import PLAIN, SOFTKD, Method, all_settings, teachers_of
from distill_dynamics.report.records import Run
from distill_dynamics.report.study import Study
from distill_dynamics.runs.scores import OF_CLASSES, OF_FEATURES, Score, scores_of
from distill_dynamics.tables import (
    Row,
    accuracies,
    filled,
    measured,
    shape,
)
from distill_dynamics.text import NOTHING, listed, number, signed, with_error


class Table(NamedTuple):
    """Rows of text, the first of them headers."""

    heading: str
    caption: str
    rows: Sequence[Row]
    kind: str = "numbers"
    """Its class in page.css."""


def contrast_rows(study: Study) -> list[Row]:
    """A row a method: its best top-1 against its baseline's, with the 95 % interval over seeds."""
    return _contrast_rows(study.contrasts)


def over_plain_rows(study: Study) -> list[Row]:
    """The same beside plain training, of methods that `contrast_rows` compares with SoftKD."""
    return _contrast_rows(study.over_plain)


def _contrast_rows(contrasts: Sequence[Contrast]) -> list[Row]:
    rows: list[Row] = [("method", "compared with", "difference (points)", "95 % interval", "verdict")]
    for contrast in contrasts:
        method, baseline = contrast.method, contrast.baseline
        if baseline is method or not method.by_seed() or (baseline is None and not contrast.reason):
            continue
        bounds = NOTHING if contrast.interval is None else " to ".join(map(signed, contrast.interval))
        verdict = f"not compared: {contrast.reason}" if baseline is None else contrast.verdict
        against = NOTHING if baseline is None else baseline.label
        rows.append((method.label, against, signed(contrast.difference), bounds, verdict))
    return filled(rows)


def gain_rows(study: Study) -> list[Row]:
    """For a terminal of 80 columns: top-1 of each method, and what it gains over SoftKD and plain training.

    ± of top-1 is its standard deviation over seeds, of a gain half the 95 % interval.
    """
    gains = {
        (contrast.method.label, contrast.baseline.name): contrast
        for contrast in (*study.contrasts, *study.over_plain)
        if contrast.baseline is not None
    }
    names = [name for name in (SOFTKD, PLAIN) if any(baseline == name for _, baseline in gains)]
    titles = {method.score.title for method in study.finished} or {OF_CLASSES[0].title}
    rows: list[Row] = [("method", f"{' or '.join(sorted(titles))} (%)", *(f"over {name}" for name in names))]
    for method in study.finished:
        label, *rest = wrap(method.label, 28, break_on_hyphens=False)
        cells = (_gain(gains.get((method.label, name))) for name in names)
        rows.append((label, _mean([*method.by_seed().values()]), *cells))
        rows += [(f"  {line}", "", *("" for _ in names)) for line in rest]
    return rows


def _gain(contrast: Contrast | None) -> str:
    if contrast is None or contrast.baseline is contrast.method:
        return NOTHING
    low, high = contrast.interval or (math.nan, math.nan)
    return with_error(signed(contrast.difference), (high - low) / 2, 2)


def results_rows(study: Study) -> list[Row]:
    """The paper's Table 1: a row a method, with mean ± standard deviation of top-1 over its seeds.

    Teachers come first. Averaged weights (EMA) have a column where there are any: each run's best. A run that
    has not finished has a row to itself.
    """
    known = [method for method in study.methods if method.by_seed()]
    if not known:
        return []
    every = {
        f"{words} {which}": (which, metric)
        for score in dict.fromkeys(method.score for method in known)
        for words, which, metric in _columns_of(score)
    }
    columns = {title: of for title, of in every.items() if any(method.by_seed(*of) for method in known)}
    rows: list[Row] = [("method", "layers", "β", "seeds", *columns, "epochs", "runs")]
    first_of = {metric: title for title, (_, metric) in reversed(columns.items())}
    for who, measured_of in dict.fromkeys(row for method in known for row in _teachers(method)):
        cells = {first_of.get(metric): text for metric, text in measured_of}
        rows.append((who, *[""] * 3, *(cells.get(title, "") for title in columns), *[""] * 2))
    rows += [
        (
            method.title,
            method.layers or NOTHING,
            method.weight or NOTHING,
            str(len(method.by_seed())),
            *(_mean([*method.by_seed(*of).values()]) for of in columns.values()),
            method.epochs,
            ", ".join(run.name for run in method.runs),
        )
        for method in known
    ]
    return rows


def _teachers(method: Method) -> Iterator[tuple[str, tuple[tuple[str, str], ...]]]:
    """The teachers of each run, and what was measured of them: a text by the student's metric."""
    first = teachers_of(method).partition(", ")[0]
    for run in method.runs:
        scores = scores_of(run.metrics)
        for who, accuracy in accuracies(run.metrics).items():
            if who.startswith("teacher"):
                cells = zip(scores, accuracy.values, strict=True)
                named = f"{who}, {first}" if who == "teacher" and first else who
                yield named, tuple((score.metric, score.text(value)) for score, value in cells)


def _columns_of(score: Score) -> list[tuple[str, str, str]]:
    """What a column is called, which epoch's number it is, and of which metric."""
    if score == OF_CLASSES[0]:
        ema = "EMA", "best", f"{score.metric}_ema"
        return [(score.title, "best", score.metric), (score.title, "last", score.metric), ema]
    linear = OF_FEATURES[1]
    ema = "EMA, kNN", "best", f"{score.metric}_ema"
    of_linear = linear.title, "last", linear.metric
    return [(score.title, "best", score.metric), (score.title, "last", score.metric), of_linear, ema]


def _mean(values: Sequence[float]) -> str:
    if not values:
        return NOTHING
    return with_error(f"{fmean(values):.2f}", stdev(values) if len(values) > 1 else math.nan, 2)


def loss_rows(runs: Sequence[Run]) -> list[Row]:
    """The terms of the loss that have a floor, unweighted: at the last epoch, and their floor."""
    rows: list[Row] = [("run", "term of the loss", "last epoch", "floor")]
    for run in runs:
        for term, floor in run.loss_floors.items():
            values = [row[f"train/loss_{term}"] for row in run.metrics if f"train/loss_{term}" in row]
            rows.append((run.name, term, f"{values[-1]:.4g}" if values else NOTHING, f"{floor:.4g}"))
    return filled(rows if len(runs) > 1 else [row[1:] for row in rows])


def range_rows(runs: Sequence[Run]) -> list[Row]:
    """A row a model that was analysed in several value ranges of the bins: what its curve says in each.

    r is Pearson's correlation over blocks of the entropy with log2 of the magnitude, to which bins of one
    width tie it. Whether the lowest block depends on the range is said beyond two standard errors.
    """
    models: dict[tuple[object, str], dict[str, Profile]] = {}
    for run in runs:
        if run.latest is not None and measured(run.latest) and len(run.latest.layers) > 1:
            models.setdefault((run.path, run.label), {})[run.range] = run.latest
    several = {label: readings for (_, label), readings in models.items() if len(readings) > 1}
    ranges = dict.fromkeys(name for readings in several.values() for name in readings)
    rows: list[Row] = [("lowest block by range", *ranges, "verdict")]
    rows += [
        (
            label,
            *(_in_range(readings[name]) if name in readings else NOTHING for name in ranges),
            _over_ranges([*readings.values()]),
        )
        for label, readings in several.items()
    ]
    return filled(rows)


def _in_range(profile: Profile) -> str:
    """Such as "4 ± 0.5 (no U), r = 0.98, 20.0 % outside"."""
    with np.errstate(divide="ignore", invalid="ignore"):
        r = np.corrcoef(profile.entropy, np.log2(profile.magnitude))[0, 1]
    outside = 100 * profile.clipped.mean()  # of a range that was given: in the bins at its ends
    return (
        lowest_block(profile)
        + (f", r = {number(r, 2)}" if np.isfinite(r) else "")
        + (f", {outside:.1f} % outside" if outside > 0 else "")
    )


def lowest_block(profile: Profile, with_depth: bool = False) -> str:
    """Such as "4 ± 0.5 (no U)", or with the depth of a U in bits."""
    curve = signature(profile)
    deep = ""
    if with_depth and curve.u_shaped:
        deep = f", {with_error(f'{curve.depth:.3f}', curve.depth_se, 3)} bits deep"
    return f"{with_error(str(curve.nadir), curve.nadir_se, 1)} ({shape(profile)}{deep})"


def _over_ranges(profiles: Sequence[Profile]) -> str:
    curves = [signature(profile) for profile in profiles]
    pairs = [
        (abs(a.nadir - b.nadir), 2 * math.hypot(a.nadir_se, b.nadir_se)) for a, b in combinations(curves, 2)
    ]
    if any(math.isnan(margin) for _, margin in pairs):
        return "too few images to tell"
    if any(distance > margin for distance, margin in pairs):
        return "the block differs"
    if len({one.u_shaped for one in curves}) > 1:
        return "a U in some ranges only"
    return (
        "same block and shape" if all(distance + margin < 1 for distance, margin in pairs) else "not certain"
    )


def config_rows(study: Study) -> list[Row]:
    """The settings in which the runs differ; what a run does not set is a dash.

    Runs of one method, which differ by seed and machine, share a column; those without a configuration have
    none. What only names a run (name, folder, W&B) is left out.
    """
    settings = {run.name: all_settings(run) for run in study.runs if run.config}
    columns: dict[str, list[str]] = {}
    for name in settings:
        columns.setdefault(study.key_of.get(name, name), []).append(name)
    rows: list[Row] = [("setting", *map(listed, columns.values()))]
    for key in dict.fromkeys(key for setting in settings.values() for key in setting):
        values = {name: setting.get(key, NOTHING) for name, setting in settings.items()}
        if len(set(values.values())) > 1:
            cells = (dict.fromkeys(values[name] for name in names) for names in columns.values())
            rows.append((key, *map(", ".join, cells)))
    return filled(rows)


def evolution_rows(runs: Sequence[Run]) -> list[Row]:
    """How each training's entropy curve changed over its probes after epoch 0; see `evolution`.

    Changes are end minus beginning, ± their standard error over images. Where the last block ends above its
    lowest by no more than chance among the images would have it, it is not said to rise. A run of fewer than
    two such probes has no row.
    """
    rows: list[Row] = [
        (
            "entropy over epochs",
            "epochs",
            "lowest block",
            "first block (bits)",
            "last block (bits)",
            "last block lowest until",
            "rises from",
            "rebound (bits)",
            "U since",
        )
    ]
    for run in runs:
        trained = trained_probes(run)
        if len(trained) < 2:
            continue
        change, back = evolution(trained), rebound(trained)
        first, last = trained[0], trained[-1]
        rises = None if back.certain is False else change.last_rises_from
        rows.append(
            (
                "student" if len(runs) == 1 and run.kind == "fit" else run.name,
                f"{first.epoch} to {last.epoch}",
                f"{signature(first).nadir} → {signature(last).nadir}",
                with_error(signed(change.first_change), change_error(first, last, 0), 2),
                with_error(signed(change.last_change), change_error(first, last, -1), 2),
                _epoch(change.last_lowest_until),
                _epoch(rises),
                with_error(number(back.value, 2), back.error, 2),
                _epoch(change.u_since),
            )
        )
    return filled(rows)


def _epoch(epoch: int | None) -> str:
    return NOTHING if epoch is None else str(epoch)


def trained_probes(run: Run) -> list[Profile]:
    """The student's Profiles after epoch 0, in order, but for those whose entropy is not known."""
    return [profile for profile in run.profiles.students if profile.epoch and measured(profile)]
