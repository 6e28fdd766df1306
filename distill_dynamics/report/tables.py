"""Tables as rows of text, the header row first; `fit` prints them, and the report shows them.

A table in which nothing would stand is [].
"""

import math
from collections.abc import Sequence
from itertools import compress
from typing import NamedTuple

import numpy as np

from distill_dynamics.dynamics.profile import FloatArray, Profile, standard_error
from distill_dynamics.dynamics.signature import (
    bootstrap_interval,
    evolution,
    gap,
    massive_activations,
    signature,
    spectrum_signature,
    student_t,
)
from distill_dynamics.report.methods import baseline, baselines, methods, methods_by_run, named_settings
from distill_dynamics.report.records import Run, RunProfiles, listed

Row = tuple[str, ...]
Named = Sequence[tuple[str, Profile]]
"""Profiles and what their row is called, e.g. `RunProfiles.named()` or `Run.named()`."""

_NOTHING = "–"


class Accuracy(NamedTuple):
    """Accuracy on the validation set, percent."""

    top1: float
    top5: float
    epoch: int | None
    """Completed epochs; None for the teacher."""


def accuracies(metrics: list[dict[str, float]]) -> dict[str, Accuracy]:
    """Accuracy of "teacher", "student, best" and "student, last", those of them that were measured.

    Best is the highest top-1, and the first epoch of several: the one whose checkpoint is kept. "EMA, best"
    and "EMA, last" are of the student's averaged weights (callback EMA), each at an epoch of its own.
    """
    found = {}
    for row in metrics[:1]:  # the teacher is measured once, before training
        if math.isfinite(row.get("teacher/acc1", math.nan)):
            found["teacher"] = Accuracy(row["teacher/acc1"], row.get("teacher/acc5", math.nan), None)
    for who, top1, top5 in (("student", "val/acc1", "val/acc5"), ("EMA", "val/acc1_ema", "val/acc5_ema")):
        scored = [
            Accuracy(row[top1], row.get(top5, math.nan), int(row["epoch"]))
            for row in metrics
            if math.isfinite(row.get(top1, math.nan))
        ]
        if scored:
            found[f"{who}, best"] = max(scored, key=lambda accuracy: accuracy.top1)
            found[f"{who}, last"] = scored[-1]
    return found


def accuracy_rows(metrics: list[dict[str, float]]) -> list[Row]:
    """Accuracies of one run in percent."""
    rows: list[Row] = [("accuracy (%)", "top-1", "top-5", "epoch")]
    for who, found in accuracies(metrics).items():
        epoch = "" if found.epoch is None else str(found.epoch)
        rows.append((who, _number(found.top1, 2), _number(found.top5, 2), epoch))
    return _table(rows)


def results_rows(runs: Sequence[Run]) -> list[Row]:
    """The paper's Table 1: a row a method, with mean ± standard deviation of top-1 over its seeds.

    The difference is that of the best top-1 to the baseline: SoftKD with all other settings equal, else plain
    training; the column is left out where no method has one. So is that of the averaged weights (EMA), each
    run's best as well. A run that has not finished has a row to itself.
    """
    found = methods(runs)
    scores = [
        (method, method.score("best"), method.score("last"), method.score("best", "val/acc1_ema"))
        for method in found
    ]
    if not any(best for _, best, *_ in scores):
        return []
    bases, measured_against = [baseline(method, found) for method in found], baselines(found)
    optional = {
        "EMA best": any(ema for *_, ema in scores),
        "difference": bool(measured_against),
    }
    header = ("method", "layers", "β", "seeds", "top-1 best", "top-1 last", *optional, "epochs", "runs")
    rows: list[Row] = [header]
    for (method, best, last, ema), base in zip(scores, bases, strict=True):
        base_score = base.score() if base else None
        rows.append(
            (
                method.name,
                method.layers or "N/A",
                method.weight or "N/A",
                str(len(method.by_seed("best"))),
                str(best or _NOTHING),
                str(last or _NOTHING),
                str(ema or _NOTHING),
                "baseline"
                if any(method is other for other in measured_against)
                else f"{best.mean - base_score.mean:+.2f}"
                if best and base_score and base is not method
                else _NOTHING,
                method.epochs,
                ", ".join(run.name for run in method.runs),
            )
        )
    shown = [optional.get(name, True) for name in header]
    return [tuple(compress(row, shown)) for row in rows]


def config_rows(runs: Sequence[Run]) -> list[Row]:
    """The settings in which the runs differ; what a run does not set is a dash.

    Runs of one method, which differ by seed and machine, share a column; those without a configuration have
    none. What only names a run (name, folder, W&B) is left out.
    """
    settings = {run.name: named_settings(run) for run in runs if run.config}
    owners, columns = methods_by_run(runs), dict[str, list[str]]()
    for name in settings:
        columns.setdefault(owners.get(name, name), []).append(name)
    rows: list[Row] = [("setting", *map(listed, columns.values()))]
    for key in dict.fromkeys(key for setting in settings.values() for key in setting):
        values = {name: setting.get(key, _NOTHING) for name, setting in settings.items()}
        if len(set(values.values())) > 1:
            cells = (dict.fromkeys(values[name] for name in names) for names in columns.values())
            rows.append((key, *map(", ".join, cells)))
    return _table(rows)


def signature_rows(named: Named, bootstrap: bool = False) -> list[Row]:
    """What each Profile's entropy curve says, and the magnitude with it; see `signature`.

    Fall and rise are the first and the last block's entropy above the lowest's. ± of the lowest block is its
    standard deviation over resamples of the images, of fall and rise their standard error; with `bootstrap`
    the latter have 95 % intervals in its place, those of `side_intervals`.
    """
    rows: list[Row] = [
        ("entropy by block", "lowest block", "fall (bits)", "rise (bits)", "shape", "magnitude")
    ]
    for who, profile in named:
        if not measured(profile):
            rows.append((who, _NOTHING, _NOTHING, _NOTHING, shape(profile), _NOTHING))
            continue
        found = signature(profile)
        depths = [f"{found.depth_left:.3f}", f"{found.depth_right:.3f}"]
        if bootstrap and len(profile.entropy_images) > 1:
            ends = zip(depths, side_intervals(profile), strict=True)
            sides = [f"{depth} ({low:.3f} to {high:.3f})" for depth, (low, high) in ends]
        else:
            errors = found.depth_left_se, found.depth_right_se
            sides = [with_error(depth, error, 3) for depth, error in zip(depths, errors, strict=True)]
        lowest = f"lowest at {found.magnitude_nadir:.0f}{', a U too' if found.magnitude_agrees else ''}"
        magnitude = _NOTHING if math.isnan(found.magnitude_nadir) else lowest
        nadir = with_error(str(found.nadir), found.nadir_se, 1)
        rows.append((who, nadir, *sides, shape(profile), magnitude))
    return _table(rows)


def side_intervals(profile: Profile) -> FloatArray:
    """[2, 2]: 95 % intervals (low, high) of the fall before the lowest block and of the rise after it, bits.

    The block is the one that is lowest on average over all images.
    """
    entropy = profile.entropy_images
    lowest = entropy[:, [int(profile.entropy.argmin())]]
    return np.stack(bootstrap_interval(entropy[:, [0, -1]] - lowest), axis=1)


def measured(profile: Profile) -> bool:
    """Whether the entropy of every layer is a number, without which the curve's shape is not known."""
    return bool(np.isfinite(profile.entropy).all())


def shape(profile: Profile) -> str:
    """ "U", "no U", or why that is unknown."""
    if not measured(profile):
        return "unknown: not measured"
    images = len(profile.entropy_images)
    if images < 2:
        return "unknown: one image" if images else "unknown: no images"
    return "U" if signature(profile).u_shaped else "no U"


def spectrum_rows(named: Named) -> list[Row]:
    """Flatness and low and high energy of the early, middle and late channel spectra; massive activations.

    Flatness is 1 for a uniform spectrum and near 0 for a low-pass. Low and high are the shares of the power
    in the lowest and the highest third of the frequencies above 0, percent. See `spectrum_signature` and
    `massive_activations`.
    """
    rows: list[Row] = [
        (
            "channel spectrum",
            *("flatness early", "middle", "late"),
            *("low, high third (%) early", "middle", "late"),
            "three phases",
            "largest |A| / median",
        )
    ]
    for who, profile in named:
        found, massive = spectrum_signature(profile), massive_activations(profile)
        flatness = [found.flatness_early, found.flatness_middle, found.flatness_late]
        if not any(map(math.isfinite, [*flatness, massive.ratio])):
            continue
        bands = [
            (found.low_early, found.high_early),
            (found.low_middle, found.high_middle),
            (found.low_late, found.high_late),
        ]
        at = f"{massive.ratio:.0f} at block {massive.block:.0f}, channel {massive.channel:.0f}"
        rows.append(
            (
                who,
                *(_number(value, 3) for value in flatness),
                *(", ".join(_number(100 * share, 0) for share in shares) for shares in bands),
                {True: "yes", False: "no", None: _NOTHING}[found.three_phases],
                at if math.isfinite(massive.ratio) else _NOTHING,
            )
        )
    return _table(rows)


def gap_rows(profiles: RunProfiles) -> list[Row]:
    """How far the student is from its teacher at each probe; [] without a teacher. See `gap`."""
    rows: list[Row] = [
        (
            "student to teacher",
            "entropy (bits)",
            "its shape (bits)",
            "magnitude (log2)",
            "flatness",
            "shift of the lowest block (relative depth)",
        )
    ]
    for who, profile in profiles.named():
        if profiles.teacher is None or profile is profiles.teacher:
            continue
        found = gap(profile, profiles.teacher)
        distances = [
            found.entropy_distance,
            found.entropy_shape_distance,
            found.magnitude_distance,
            found.flatness_distance,
        ]
        shift = found.nadir_shift if measured(profile) and measured(profiles.teacher) else math.nan
        rows.append((who, *(_number(value, 3) for value in distances), _signed(shift)))
    return _table(rows)


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
        found, back = evolution(trained), rebound(trained)
        rises = None if back.certain is False else found.last_rises_from
        epoch = [
            _NOTHING if value is None else str(value)
            for value in (found.last_lowest_until, rises, found.u_since)
        ]
        ends = trained[0], trained[-1]
        nadirs = [signature(profile).nadir for profile in ends]
        rows.append(
            (
                run.name,
                f"{trained[0].epoch} to {trained[-1].epoch}",
                f"{nadirs[0]} → {nadirs[1]}",
                with_error(_signed(found.first_change), change_error(*ends, 0), 2),
                with_error(_signed(found.last_change), change_error(*ends, -1), 2),
                *epoch[:2],
                with_error(_number(back.value, 2), back.error, 2),
                epoch[2],
            )
        )
    return _table(rows)


def change_error(before: Profile, after: Profile, block: int) -> float:
    """Standard error over images of a block's entropy after minus before, bits; NaN for fewer than two.

    On the same images it is that of the differences image by image.
    """
    values = [profile.entropy_images[:, block] for profile in (before, after)]
    if before.probe_id and before.probe_id == after.probe_id and len(values[0]) == len(values[1]):
        return float(standard_error(values[1] - values[0]))
    return math.hypot(before.entropy_se[block], after.entropy_se[block])


class Rebound(NamedTuple):
    """How far the last block's entropy is above its lowest at the end of a training (Section 5.4)."""

    value: float
    """Bits."""
    error: float
    """Standard error over images."""
    certain: bool | None
    """Whether that is more than chance among the images would have it; None where no images tell."""


def rebound(trained: Sequence[Profile]) -> Rebound:
    """The last block at its last probe against its lowest: one picked of several, which t allows for."""
    low, end = min(trained, key=lambda profile: profile.entropy[-1]), trained[-1]
    value, error = float(end.entropy[-1] - low.entropy[-1]), change_error(low, end, -1)
    if math.isnan(error):
        return Rebound(value, error, None)
    t = student_t(0.025 / max(1, len(trained) - 1), len(end.entropy_images) - 1)
    return Rebound(value, error, value > t * error)


def trained_probes(run: Run) -> list[Profile]:
    """The student's Profiles after epoch 0, in order, but for those whose entropy is not known."""
    return [profile for profile in run.profiles.students if profile.epoch and measured(profile)]


def aligned(rows: list[Row]) -> list[str]:
    """Rows as lines for a terminal: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "   ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows
    ]


def _table(rows: list[Row]) -> list[Row]:
    return rows if len(rows) > 1 else []


def with_error(value: str, error: float, digits: int) -> str:
    """ "3 ± 0.5"; without ± where the error is unknown."""
    return value if math.isnan(error) else f"{value} ± {error:.{digits}f}"


def _number(value: float, digits: int) -> str:
    return _NOTHING if math.isnan(value) else f"{value:.{digits}f}"


def _signed(value: float) -> str:
    return _NOTHING if math.isnan(value) else f"{value:+.2f}"
