"""Tables as rows of text, the header row first; `fit` prints them, and the report shows them."""

import math
from typing import NamedTuple

from distill_dynamics.dynamics.signature import signature
from distill_dynamics.report.run_files import RunProfiles

Row = tuple[str, ...]


class Accuracy(NamedTuple):
    """Accuracy on the validation set, percent."""

    top1: float
    top5: float
    epoch: int | None
    """Completed epochs; None for the teacher."""


def accuracies(metrics: list[dict[str, float]]) -> dict[str, Accuracy]:
    """Accuracy of "teacher", "student, best" and "student, last", those of them that were measured.

    Best is the highest top-1, and the first epoch of several: the one whose checkpoint is kept.
    """
    found = {}
    for row in metrics[:1]:  # the teacher is measured once, before training
        if "teacher/acc1" in row:
            found["teacher"] = Accuracy(row["teacher/acc1"], row.get("teacher/acc5", math.nan), None)
    students = [
        Accuracy(row["val/acc1"], row.get("val/acc5", math.nan), int(row["epoch"]))
        for row in metrics
        if "val/acc1" in row
    ]
    if students:
        found["student, best"] = max(students, key=lambda student: student.top1)
        found["student, last"] = students[-1]
    return found


def accuracy_rows(metrics: list[dict[str, float]]) -> list[Row]:
    """Rows of accuracies in percent; nothing where none was measured."""
    rows: list[Row] = [("accuracy (%)", "top-1", "top-5", "epoch")]
    for who, found in accuracies(metrics).items():
        epoch = "" if found.epoch is None else str(found.epoch)
        rows.append((who, _number(found.top1, 2), _number(found.top5, 2), epoch))
    return rows if len(rows) > 1 else []


def signature_rows(profiles: RunProfiles) -> list[Row]:
    """Rows of what each Profile's entropy curve says; nothing where there is no Profile.

    ± is the standard deviation over resamples of the images; see `signature`.
    """
    rows: list[Row] = [("entropy by block", "lowest block", "depth of the U (bits)", "shape")]
    for who, profile in profiles.named():
        found = signature(profile)
        one_image = len(profile.entropy_images) < 2
        shape = "U" if found.u_shaped else "unknown: one image" if one_image else "no U"
        nadir = _with_error(str(found.nadir), found.nadir_se, 1)
        rows.append((who, nadir, _with_error(f"{found.depth:.3f}", found.depth_se, 3), shape))
    return rows if len(rows) > 1 else []


def _with_error(value: str, error: float, digits: int) -> str:
    return value if math.isnan(error) else f"{value} ± {error:.{digits}f}"


def _number(value: float, digits: int) -> str:
    return "–" if math.isnan(value) else f"{value:.{digits}f}"
