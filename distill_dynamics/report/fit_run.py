"""Reading a run directory of `fit`, as far as it has come.

What cannot be read, or is not there yet, costs a sentence in `Run.warnings` and nothing else.
"""

import csv
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from distill_dynamics.dynamics.profile import Profile
from distill_dynamics.dynamics.profile_file import LARGEST
from distill_dynamics.report.methods import describe
from distill_dynamics.report.records import (
    Run,
    counted,
    fitting,
    left_out,
    listed,
    planned_epochs,
    range_name,
)
from distill_dynamics.runs.metrics_csv import parse
from distill_dynamics.runs.profiles import load_profiles, until_epoch
from distill_dynamics.runs.read import Unreadable, read_json, read_text, read_yaml


def read_fit(path: Path) -> Run:
    """Everything in the directory that can be read, and a sentence for each thing that cannot."""
    starts, warnings = _starts(path)
    config, said = _config(path)
    metrics, more = _metrics(path)
    unreadable: dict[str, list[str]] = {}
    profiles = load_profiles(path / "dynamics", unreadable)
    unfit: list[str] = []
    profiles = fitting(*profiles, unfit)
    if metrics:
        reached, probed = max(row["epoch"] for row in metrics), profiles.students
        profiles = until_epoch(profiles, reached)
        if len(profiles.students) < len(probed):
            unfit.append(
                f"Profiles go on to epoch {probed[-1].epoch}, metrics.csv ends at {reached:g}: the run was "
                "continued from an earlier epoch, and those of the part that is run again are left out."
            )
    run = Run(
        name=path.resolve().name,
        label=path.resolve().name,
        path=path,
        kind="fit",
        profiles=profiles,
        metrics=metrics,
        config=config,
        starts=starts,
        range=_range([profile for _, profile in profiles.named()]),
    )
    warnings += [
        *said,
        *more,
        *left_out(unreadable),
        *unfit,
        *_end(run),
        *_missing(run),
        *_changes(starts),
        *_doubts(starts),
        *_inner(run),
    ]
    return replace(run, warnings=warnings)


def _starts(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    try:
        starts = read_json(path / "run.json")["starts"]
        parts = [start.get(name) for start in starts for name in ("data", "versions", "ended")]
        if all(part is None or isinstance(part, dict) for part in parts):
            return starts, [] if starts else ["Training has not begun: run.json records no start."]
    except (Unreadable, KeyError, TypeError, AttributeError):
        pass
    return [], ["run.json cannot be read: when, from what and how the run was started is not known."]


def _config(path: Path) -> tuple[dict[str, Any], list[str]]:
    file = path / "config.yaml"
    if not file.exists():
        return {}, ["No configuration: there is no config.yaml."]
    reason = ""
    try:
        config = read_yaml(file)
        sections = [config.get(key) or {} for key in ("model", "data", "trainer", "probe")]
        if all(isinstance(section, dict) for section in sections):
            describe(config)
            return config, []
    except Unreadable as error:
        reason = error.bound
    except (AttributeError, KeyError, TypeError, ValueError):
        pass
    return {}, [f"No configuration: config.yaml is not the configuration of a run{reason}."]


def _metrics(path: Path) -> tuple[list[dict[str, float]], list[str]]:
    """The rows of metrics.csv, one an epoch, without empty cells; what was cut short is left out and told."""
    file = path / "metrics.csv"
    if not file.exists():
        return [], []
    try:
        columns, found = parse(read_text(file).removeprefix("\ufeff"))
    except Unreadable as error:
        return [], [f"metrics.csv cannot be read{error.bound}."]
    except csv.Error:
        return [], ["metrics.csv cannot be read."]
    words = [name for name in columns if _is_text(name, found)]
    rows, broken = [], 0
    for cells in found:
        try:
            row = {name: _number(cell) for name, cell in (cells or {}).items() if name not in words}
        except ValueError:
            row = {}
        if 0 <= row.get("epoch", -1) <= _MOST_EPOCHS:
            rows.append(row)
        else:
            broken += 1
    some = "1 row" if broken == 1 else f"{broken} rows"
    warnings = [f"metrics.csv: {some} cut short or damaged, left out."] if broken else []
    if words:
        warnings.append(f"metrics.csv: text in the place of numbers, left out: {listed(words)}.")
    if len(rows) > _MOST_EPOCHS:
        return [], [f"metrics.csv cannot be read ({len(rows):,} rows)."]
    return rows, warnings


_MOST_EPOCHS = 20_000


def _is_text(name: str, rows: Sequence[Mapping[str, str] | None]) -> bool:
    """Whether a column has entries, none of them a number."""
    cells = [row[name] for row in rows if row is not None and name in row]
    for cell in cells:
        with suppress(ValueError):
            _number(cell)
            return False
    return bool(cells)


def _number(cell: str) -> float:
    """Raises ValueError for what is none, and for what no training measures in float32."""
    value = float(cell)
    if LARGEST < abs(value) < math.inf:
        raise ValueError(cell)
    return value


def _end(run: Run) -> list[str]:
    """What to know about how the run ended."""
    planned = planned_epochs(run.config)
    done = f"{run.epochs} of {counted(planned, 'epoch')}" if planned else counted(run.epochs, "epoch")
    said = []
    last = run.last_start
    if "ended" in last and last["ended"] is None:
        said.append(f"Not ended: the run is still going, or was killed; {done} so far.")
    elif (ended := last.get("ended")) and ended.get("error"):
        said.append(f"The run stopped on an error after {done}: {ended['error']}")
    elif ended and ended.get("preempted"):
        said.append(f"The run was asked to make room, and is to be continued; {done} so far.")
    elif run.starts and planned and run.epochs < planned:
        said.append(f"The run has {done}.")
    lost = [int(row["epoch"]) for row in run.metrics if not math.isfinite(row.get("train/loss", 0.0))]
    if lost:
        said.append(f"The training loss is not a finite number at epoch {lost[0]}: training diverged.")
    unscored = [str(int(row["epoch"])) for row in run.metrics if not math.isfinite(row.get("val/acc1", 0.0))]
    if unscored:
        said.append(f"val/acc1 is not a number, and left out, at epoch {listed(unscored)}.")
    return said


def _missing(run: Run) -> list[str]:
    """What the run directory does not hold, or holds of an earlier time, in sentences."""
    columns = {name for row in run.metrics for name in row}
    probed, dynamics = run.config.get("probe") or {}, run.path / "dynamics"
    teaches = "model" not in run.config or (run.config["model"] or {}).get("teacher") is not None
    wanted: dict[str, object] = {
        "No completed epoch: metrics.csv has no training loss.": "train/loss" in columns,
        "No accuracy of the student: metrics.csv has no val/acc1.": "val/acc1" in columns,
    }
    if teaches:
        sentence = "No accuracy of a teacher: metrics.csv has no teacher/acc1."
        wanted[sentence] = "teacher/acc1" in columns
    if probed.get("every_n_epochs") == 0:
        wanted["No Profiles: probing was off (probe.every_n_epochs is 0)."] = False
    else:
        if teaches:
            sentence = "No Profile of a teacher: there is no dynamics/teacher.npz."
            wanted[sentence] = (dynamics / "teacher.npz").exists()
        sentence = "No Profile of the student in training: dynamics/ has no student_epoch_*.npz."
        wanted[sentence] = any(dynamics.glob("student_epoch_*.npz"))
        sentence = (
            "No Profile of the best student: there is no dynamics/student_best.npz, written when fit ends."
        )
        wanted[sentence] = (dynamics / "student_best.npz").exists()
    return [sentence for sentence, there in wanted.items() if not there]


def _inner(run: Run) -> list[str]:
    """What makes a run's Profiles differ by more than the training."""
    said = []
    named = [profile for _, profile in run.profiles.named()]
    if len({profile.probe_id for profile in named}) > 1:
        said.append("The Profiles are of different probe images: they differ by these, too.")
    if len({profile.range_mode for profile in named}) > 1 or len({profile.bins for profile in named}) > 1:
        said.append("The Profiles have different bins: their entropies do not compare.")
    best = run.profiles.best
    scored = [row for row in run.metrics if math.isfinite(row.get("val/acc1", math.nan))]
    if best is not None and scored:  # continued after its end, not ended again
        epoch = int(max(scored, key=lambda row: row["val/acc1"])["epoch"])
        if best.epoch not in (None, epoch):
            said.append(
                f"The Profile of the best student is of epoch {best.epoch}, the best now is epoch {epoch}: "
                "fit has not ended since."
            )
    return said


def _changes(starts: list[dict[str, Any]]) -> list[str]:
    """What a continued run was continued with, where it is not what it was started with."""
    said = []
    for before, after in pairwise(starts):
        old, new = circumstances(before), circumstances(after)
        changed = [
            f"{name} {old[name]}, then {new[name]}" for name in old if new.get(name, old[name]) != old[name]
        ]
        if changed:
            said.append(f"Continued at epoch {after.get('from_epoch')} with changes: {'; '.join(changed)}.")
    return said


def _doubts(starts: list[dict[str, Any]]) -> list[str]:
    """What `fit` found to be wrong with the teacher, where it did."""
    teachers = [start.get("teacher") for start in starts]
    found = [teacher.get("doubt") for teacher in teachers if isinstance(teacher, dict)]
    return [
        f"{text[0].upper()}{text[1:]}."
        for text in dict.fromkeys(found[-1:])
        if isinstance(text, str) and text
    ]


def circumstances(start: dict[str, Any]) -> dict[str, str]:
    """Facts about a start that may change its numbers."""
    facts = {
        **{name: start.get(name) for name in ("seed", "commit", "devices", "images_a_step", "python")},
        "data": (start.get("data") or {}).get("fingerprint"),
        **(start.get("versions") or {}),
    }
    return {name: str(fact) for name, fact in facts.items() if fact is not None}


def _range(profiles: list[Profile]) -> str:
    if not profiles:
        return ""
    first = profiles[0]
    return range_name(first.range_mode if first.range_mode != "explicit" else first.value_range[0].tolist())
