"""Tables as rows of text, the header row first; `fit` and `analyze` print them, and the report shows them.

A table in which nothing would stand is [].
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from distill_dynamics.dynamics.profile import FloatArray, Profile
from distill_dynamics.dynamics.signature import (
    bootstrap_interval,
    gap,
    massive_activations,
    signature,
    spectrum_signature,
)
from distill_dynamics.dynamics.statistics import SHOWN, Statistic
from distill_dynamics.runs.profiles import RunProfiles
from distill_dynamics.runs.scores import OF_CLASSES, OF_FEATURES, scores_of
from distill_dynamics.text import NOTHING, number, signed, with_error

Row = tuple[str, ...]
Named = Sequence[tuple[str, Profile]]
"""Profiles and what their row is called, e.g. `RunProfiles.named()` or `Run.named()`."""


class Accuracy(NamedTuple):
    """What was measured on the validation set: each of `scores_of` its run, the first in percent."""

    values: tuple[float, ...]
    epoch: int | None
    """Completed epochs; None for the teacher."""

    @property
    def top1(self) -> float:
        """What the best student is chosen by, percent: of its classes, or by kNN where there are none."""
        return self.values[0]


def accuracies(metrics: Sequence[Mapping[str, float]]) -> dict[str, Accuracy]:
    """Accuracy of "teacher", "student, best" and "student, last", those of them that were measured.

    Further teachers are "teacher NAME".

    Best is the highest top-1, and the first epoch of several: the one whose checkpoint is kept. "EMA, best"
    and "EMA, last" are of the student's averaged weights (callback EMA), each at an epoch of its own.
    "student, untrained" is known where there are no classes.
    """
    scores = scores_of(metrics)

    def scored(who: str, end: str = "") -> list[Accuracy]:
        names = [f"{who}/{score.name}{end}" for score in scores]
        found = [
            Accuracy(tuple(row.get(name, math.nan) for name in names), int(row["epoch"])) for row in metrics
        ]
        return [accuracy for accuracy in found if math.isfinite(accuracy.top1)]

    known = {}
    of_teachers = re.compile(rf"(teacher(?:_.+)?)/{scores[0].name}")
    for role in sorted(
        {found[1] for row in metrics for name in row if (found := of_teachers.fullmatch(name))}
    ):
        for accuracy in scored(role)[:1]:  # once, before training
            known[role.replace("_", " ", 1)] = accuracy._replace(epoch=None)
    for who, end in (("student", ""), ("EMA", "_ema")):
        every = scored("val", end)
        if untrained := [accuracy for accuracy in every if accuracy.epoch == 0]:
            known[f"{who}, untrained"] = untrained[0]
        if trained := [accuracy for accuracy in every if accuracy.epoch]:
            known[f"{who}, best"] = max(trained, key=lambda accuracy: accuracy.top1)
            known[f"{who}, last"] = trained[-1]
    return known


def accuracy_rows(metrics: Sequence[Mapping[str, float]]) -> list[Row]:
    """Accuracies of one run in percent; without classes with the effective rank of the features."""
    scores = scores_of(metrics)
    titles = ["features", *(score.column for score in scores)]
    if scores is OF_CLASSES:
        titles = ["accuracy (%)", *(score.title for score in scores)]
    rows: list[Row] = [(*titles, "epoch")]
    for who, accuracy in accuracies(metrics).items():
        epoch = "" if accuracy.epoch is None else str(accuracy.epoch)
        cells = (score.text(value) for value, score in zip(accuracy.values, scores, strict=True))
        rows.append((who, *cells, epoch))
    return filled(rows)


def quality_rows(named: Iterable[tuple[str, Mapping[str, float]]]) -> list[Row]:
    """How good features are, by what their row is called: each of `OF_FEATURES` by its name."""
    rows: list[Row] = [("features", *(score.column for score in OF_FEATURES))]
    rows += [(who, *(score.text(quality[score.name]) for score in OF_FEATURES)) for who, quality in named]
    return filled(rows)


def quality_caption(facts: Mapping[str, Any]) -> str:
    """What `quality_rows` is of: the images of `analyze --knn`, by their facts in analysis.json."""
    parted = f"{facts['bank']} labelled images of {facts['source']} classify {facts['queries']} others"
    return f"{parted}; {facts['classes']} classes, by chance {100 / facts['classes']:.4g} %"


COST = "Cost: MB of weights, operations of one image, milliseconds for 1 and 32 images on the run's machine"


def cost_rows(start: Mapping[str, Any]) -> list[Row]:
    """What teacher and student cost, by a start in run.json, and how many times less the student does.

    [] where that has no such numbers, as those of earlier versions.
    """
    rows: list[Row] = [("", "parameters", "MB", "GFLOP", "ms, 1 image", "ms, 32")]
    known = {}
    for who in ("teacher", "student"):
        facts = start.get(f"{who}_cost")
        if isinstance(facts, dict):
            values = [facts.get(key) for key in ("parameters", "megabytes", "gflop", "ms_1", "ms_32")]
            known[who] = [float(v) if isinstance(v, int | float) else math.nan for v in values]
            millions, *others = known[who]
            cells = (NOTHING if math.isnan(value) else f"{value:.4g}" for value in others)
            rows.append((who, f"{number(millions / 1e6, 2)} M", *cells))
    if len(known) == 2:
        pairs = zip(known["teacher"], known["student"], strict=True)
        times = [a / b if b else math.nan for a, b in pairs]
        rows.append(("teacher / student", *(number(value, 1) for value in times)))
    return filled(rows)


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
            rows.append((who, NOTHING, NOTHING, NOTHING, shape(profile), NOTHING))
            continue
        curve = signature(profile)
        depths = [f"{curve.depth_left:.3f}", f"{curve.depth_right:.3f}"]
        if bootstrap and len(profile.entropy_images) > 1:
            ends = zip(depths, side_intervals(profile), strict=True)
            sides = [f"{depth} ({number(low, 3)} to {number(high, 3)})" for depth, (low, high) in ends]
        else:
            errors = curve.depth_left_se, curve.depth_right_se
            sides = [with_error(depth, error, 3) for depth, error in zip(depths, errors, strict=True)]
        lowest = f"lowest at {curve.magnitude_nadir:.0f}{', a U too' if curve.magnitude_agrees else ''}"
        magnitude = NOTHING if math.isnan(curve.magnitude_nadir) else lowest
        nadir = with_error(str(curve.nadir), curve.nadir_se, 1)
        rows.append((who, nadir, *sides, shape(profile), magnitude))
    return filled(rows)


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
        spectrum, massive = spectrum_signature(profile), massive_activations(profile)
        flatness, low, high = (
            [getattr(spectrum, f"{name}_{part}") for part in ("early", "middle", "late")]
            for name in ("flatness", "low", "high")
        )
        if not any(map(math.isfinite, [*flatness, massive.ratio])):
            continue
        at = f"{massive.ratio:.0f} at block {massive.block:.0f}, channel {massive.channel:.0f}"
        rows.append(
            (
                who,
                *(number(value, 3) for value in flatness),
                *(f"{number(100 * a, 0)}, {number(100 * b, 0)}" for a, b in zip(low, high, strict=True)),
                {True: "yes", False: "no", None: NOTHING}[spectrum.three_phases],
                at if math.isfinite(massive.ratio) else NOTHING,
            )
        )
    return filled(rows)


def curve_rows(named: Named, curve: Statistic) -> list[Row]:
    """A curve by block in a few numbers, ± standard error over images: its ends, lowest and highest block.

    Profiles that lack it have no row.
    """
    unit = f" ({curve.unit})" if curve.unit else ""
    rows: list[Row] = [(f"{curve.within_text}{unit}", "first block", "last block", "lowest", "highest")]
    for who, profile in named:
        values, errors = profile.curve(curve.name), profile.curve_se(curve.name)
        if not np.isfinite(values).any():
            continue
        cells = [
            with_error(f"{value:z.3g}", error, 2) if np.isfinite(value) else NOTHING
            for value, error in zip(values, errors, strict=True)
        ]
        low, high = int(np.nanargmin(values)), int(np.nanargmax(values))
        ends = (f"{cells[row]} at block {profile.blocks[row]}" for row in (low, high))
        rows.append((who, cells[0], cells[-1], *ends))
    return filled(rows)


OTHER_CURVES = tuple(curve for curve in SHOWN if curve.name not in ("entropy", "magnitude"))
"""Those that `signature_rows` does not tell of."""


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
        if profiles.teacher is None or any(profile is one for one in profiles.teachers()):
            continue
        distance = gap(profile, profiles.teacher)
        distances = [
            getattr(distance, f"{name}_distance")
            for name in ("entropy", "entropy_shape", "magnitude", "flatness")
        ]
        shift = distance.nadir_shift if measured(profile) and measured(profiles.teacher) else math.nan
        rows.append((who, *(number(value, 3) for value in distances), signed(shift)))
    return filled(rows)


def aligned(rows: list[Row]) -> list[str]:
    """Rows as lines for a terminal: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows
    ]


def filled(rows: list[Row]) -> list[Row]:
    """The table, or [] where it has no row but its header."""
    return rows if len(rows) > 1 else []
