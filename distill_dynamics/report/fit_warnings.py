"""What a reader must know of a training first: how it ended, what it lacks, what changed on the way."""

import math
import re
from itertools import pairwise
from typing import Any

from distill_dynamics.figures.floors import with_floors
from distill_dynamics.report.records import Run, planned_epochs
from distill_dynamics.runs.scores import OF_CLASSES, OF_FEATURES, scores_of
from distill_dynamics.tables import accuracies
from distill_dynamics.text import counted, listed


def fit_warnings(run: Run) -> list[str]:
    """Sentences about a run directory that could be read."""
    return [*_end(run), *_missing(run), *_changes(run), *_doubt(run), *_profiles(run)]


def _end(run: Run) -> list[str]:
    planned, last = planned_epochs(run.config), run.last_start
    done = f"{run.epochs} of {counted(planned, 'epoch')}" if planned else counted(run.epochs, "epoch")
    ended = last.get("ended") or {}
    warnings = []
    if "ended" in last and last["ended"] is None:
        warnings.append(f"Not ended: the run is still going, or was killed; {done} so far.")
    elif ended.get("error"):
        warnings.append(f"The run stopped on an error after {done}: {ended['error']}")
    elif ended.get("preempted"):
        warnings.append(f"The run was asked to make room, and is to be continued; {done} so far.")
    elif run.starts and planned and run.epochs < planned:
        warnings.append(f"The run has {done}.")
    diverged = [int(row["epoch"]) for row in run.metrics if not math.isfinite(row.get("train/loss", 0.0))]
    if diverged:
        warnings.append(
            f"The training loss is not a finite number at epoch {diverged[0]}: training diverged."
        )
    metric = scores_of(run.metrics)[0].metric
    unscored = [str(int(row["epoch"])) for row in run.metrics if not math.isfinite(row.get(metric, 0.0))]
    if unscored:
        warnings.append(f"{metric} is not a number, and left out, at epoch {listed(unscored)}.")
    return warnings


def _missing(run: Run) -> list[str]:
    """What the run directory does not hold."""
    columns = {name for row in run.metrics for name in row}
    folder = run.path / "dynamics"
    model = run.config.get("model") or {}
    distils = "model" not in run.config or any(model.get(key) for key in ("teacher", "teachers"))
    probed = (run.config.get("probe") or {}).get("every_n_epochs") != 0
    data = run.last_start.get("data") or {}
    has_classes = data.get("classes") != 0
    has_images = has_classes or data.get("val_images") != 0
    unmeasured = "Nothing was validated" if has_images else "No validation images"
    measured = has_images and (run.config.get("trainer") or {}).get("limit_val_batches") != 0
    score, what = (OF_CLASSES[0].name, "accuracy") if has_classes else (OF_FEATURES[0].name, "kNN top-1")
    measured_teachers = [name for name in columns if re.fullmatch(f"teacher(_.+)?/{score}", name)]
    wanted = [
        ("train/loss" in columns, "No completed epoch: metrics.csv has no training loss."),
        (
            measured,
            f"{unmeasured}: the student is that of the last epoch, whatever its quality.",
        ),
        (
            f"val/{score}" in columns or not measured,
            f"No {what} of the student: metrics.csv has no val/{score}.",
        ),
        (
            bool(measured_teachers) or not distils or not measured,
            f"No {what} of a teacher: metrics.csv has no teacher/{score}.",
        ),
        (probed, "No Profiles: probing was off (probe.every_n_epochs is 0)."),
    ]
    if probed:
        wanted += [
            (
                (folder / "teacher.npz").exists() or not distils,
                "No Profile of a teacher: there is no dynamics/teacher.npz.",
            ),
            (
                any(folder.glob("student_epoch_*.npz")),
                "No Profile of the student in training: dynamics/ has no student_epoch_*.npz.",
            ),
            (
                (folder / "student_best.npz").exists() or not measured,
                "No Profile of the best student: there is no dynamics/student_best.npz, written when fit "
                "ends.",
            ),
        ]
    return [sentence for there, sentence in wanted if not there]


def _changes(run: Run) -> list[str]:
    """What a continued run was continued with, where it is not what it was started with."""
    warnings = []
    for before, after in pairwise(run.starts):
        old, new = circumstances(before), circumstances(after)
        changed = [
            f"{name} {old[name]}, then {new[name]}" for name in old if new.get(name, old[name]) != old[name]
        ]
        if changed:
            epoch = after.get("from_epoch")
            warnings.append(f"Continued at epoch {epoch} with changes: {'; '.join(changed)}.")
    return warnings


def _doubt(run: Run) -> list[str]:
    """What `fit` found to be wrong with the teachers."""
    teachers = [start["teacher"] for start in run.starts if isinstance(start.get("teacher"), dict)][-1:]
    if isinstance(named := run.last_start.get("teachers"), dict):
        teachers = [of for of in named.values() if isinstance(of, dict)]
    texts = [text for of in teachers if isinstance(text := of.get("doubt"), str) and text]
    return [f"{text[0].upper()}{text[1:]}." for text in texts]


def _profiles(run: Run) -> list[str]:
    """What makes a run's Profiles differ by more than the training."""
    warnings = []
    if run.profiles.others:
        first = next(iter((run.config.get("model") or {}).get("teachers") or {}), "model.teacher")
        first = "model.teacher" if (run.config.get("model") or {}).get("teacher") else first
        others = [*run.profiles.others]
        warnings.append(
            f"Several teachers: where one alone is shown or compared with, it is the first, {first}; "
            f"{listed(others)} {'stands' if len(others) == 1 else 'stand'} beside it in the tables."
        )
    profiles = [profile for _, profile in run.profiles.named()]
    if len({profile.probe_id for profile in profiles}) > 1:
        warnings.append("The Profiles are of different probe images: they differ by these, too.")
    if len({(profile.range_mode, profile.bins) for profile in profiles}) > 1:
        warnings.append("The Profiles have different bins: their entropies do not compare.")
    teacher = run.profiles.teacher
    if teacher is not None and teacher.student_width is not None and not with_floors(run.floors()):
        warnings.append(
            f"The teacher's floors at the student's {teacher.student_width} channels are not known: half of "
            f"the {len(teacher.entropy_images)} probe images has no more tokens than that (probe.n_images)."
        )
    best = run.profiles.best
    chosen = accuracies(run.metrics).get("student, best")
    if best is not None and chosen:  # continued after its end, not ended again
        epoch = chosen.epoch
        if best.epoch not in (None, epoch):
            warnings.append(
                f"The Profile of the best student is of epoch {best.epoch}, the best now is epoch {epoch}: "
                "fit has not ended since."
            )
    return warnings


def circumstances(start: dict[str, Any]) -> dict[str, str]:
    """Facts about a start that may change its numbers."""
    facts = {
        **{name: start.get(name) for name in ("seed", "commit", "devices", "images_a_step", "python")},
        "data": (start.get("data") or {}).get("fingerprint"),
        **(start.get("versions") or {}),
    }
    return {name: str(fact) for name, fact in facts.items() if fact is not None}
