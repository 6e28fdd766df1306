"""Reading what a report is about: runs of `fit`, folders of `analyze`, published curves.

What cannot be read, or is not there yet, costs a sentence in `Run.warnings` and nothing else.
"""

import csv
import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from distill_dynamics.dynamics.profile import Profile
from distill_dynamics.errors import UserError
from distill_dynamics.report.published import is_published, read_published

ANALYSIS_SCHEMA = 1


class RunProfiles(NamedTuple):
    """The Profiles of one training, in the order in which the figures take them."""

    students: list[Profile]
    """One a probed epoch, in order of epochs."""
    teacher: Profile | None
    """None without a teacher."""
    best: Profile | None
    """The best checkpoint's, None before the end of `fit`."""

    def named(self) -> list[tuple[str, Profile]]:
        """What a table calls each: teacher, students by epoch, best."""
        known = self.best is not None and self.best.epoch is not None
        best = f"student, best (epoch {self.best.epoch})" if self.best and known else "student, best"
        return [
            *([("teacher", self.teacher)] if self.teacher else []),
            *((f"student, epoch {profile.epoch}", profile) for profile in self.students),
            *([(best, self.best)] if self.best else []),
        ]


@dataclass(frozen=True)
class Run:
    """One training, one analysed model, or one published curve, as far as it could be read."""

    name: str
    """Unique among the runs that were loaded together."""
    path: Path
    """The run directory, the folder of `analyze`, or the CSV file."""
    kind: Literal["fit", "analysis", "published"]
    profiles: RunProfiles
    """Of a training; without students and best where `models` holds something."""
    metrics: list[dict[str, float]] = field(default_factory=list, repr=False)
    """Rows of metrics.csv without their empty cells."""
    config: dict[str, Any] = field(default_factory=dict, repr=False)
    """config.yaml; {} where there is none."""
    starts: list[dict[str, Any]] = field(default_factory=list, repr=False)
    """One record a start of the run; of an analysis the one of its command."""
    warnings: list[str] = field(default_factory=list)
    """What a reader must know first, in sentences."""
    range: str = ""
    """Range of the entropy bins: "global", "layer" or two numbers "0,1"; "" where nothing was probed."""
    models: list[Profile] = field(default_factory=list, repr=False)
    """Analysed models that are no training."""

    def named(self) -> list[tuple[str, Profile]]:
        """What a table calls each Profile: by role in a training, else by the run's name."""
        return [*self.profiles.named(), *((self.name, model) for model in self.models)]

    @property
    def latest(self) -> Profile | None:
        """What stands for the run: the best student, else the last one probed, else the model."""
        if self.profiles.best is not None:
            return self.profiles.best
        return next(iter([*self.profiles.students[::-1], *self.models]), None)

    @property
    def epochs(self) -> int:
        """Completed epochs of training, 0 where none is recorded."""
        return max((int(row["epoch"]) for row in self.metrics if "train/loss" in row), default=0)

    @property
    def data(self) -> str | None:
        """Fingerprint of the data it was trained and validated on, None where unknown."""
        return self._last_start.get("data", {}).get("fingerprint")

    @property
    def validation_images(self) -> int | None:
        """How many images `val/acc1` is a share of, None where unknown."""
        return self._last_start.get("data", {}).get("val_images")

    @property
    def finished(self) -> bool:
        """Whether training ended as planned. Runs recorded before ends were: whether no epoch is lacking."""
        if "ended" in self._last_start:
            ended = self._last_start["ended"]
            return ended is not None and ended.get("error") is None
        return 0 < (_planned_epochs(self.config) or 0) <= self.epochs

    @property
    def _last_start(self) -> dict[str, Any]:
        return self.starts[-1] if self.starts else {}


def load_runs(paths: Iterable[str | os.PathLike[str]]) -> list[Run]:
    """Read run directories, folders of `analyze`, published CSV files and folders of these, in this order.

    A folder of `analyze` gives one Run a label and range. A path given twice is read once. Runs of one name
    are told apart by the folders they lie in.

    Raises `UserError` where a path is none of these.
    """
    distinct = {Path(path).resolve(): Path(path) for path in paths}
    return _uniquely_named([run for path in distinct.values() for run in _load(path)])


def _load(path: Path) -> list[Run]:
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    if path.is_file():
        return [_published(path)]
    if (path / "run.json").exists():
        return [_fit(path)]
    if (path / "analysis.json").exists():
        return _analysis(path)
    if curves := [file for file in sorted(path.glob("*.csv")) if is_published(file)]:
        return [_published(file) for file in curves]
    inside = next((file.parent for file in sorted(path.glob("*/*.json")) if file.name in _RECORDS), None)
    hint = f"; did you mean those in it, such as {inside}?" if inside else ""
    raise UserError(
        f"{path}: neither a run directory (run.json), a folder of analyze (analysis.json) nor a folder of "
        f"published curves (CSV files with the header Model/Epoch,Layer_1,...){hint}"
    )


_RECORDS = ("run.json", "analysis.json")


def _uniquely_named(runs: list[Run]) -> list[Run]:
    """Put as many parent folders before a name as it takes to tell it from the others."""
    names = [run.name for run in runs]
    folders = [
        [*run.path.resolve().parts[:-1], *([run.path.resolve().name] if run.kind == "analysis" else [])]
        for run in runs
    ]
    for depth in range(1, max(map(len, folders), default=0) + 1):
        twice = [names.count(name) > 1 for name in names]
        names = [
            "/".join([*folder[-depth:], run.name]) if clash else name
            for run, folder, name, clash in zip(runs, folders, names, twice, strict=True)
        ]
    return [replace(run, name=name) for run, name in zip(runs, names, strict=True)]


# --- run directories of fit ---------------------------------------------------------------------------


def load_profiles(folder: str | os.PathLike[str]) -> RunProfiles:
    """Read the Profiles in a run's `dynamics/`; none of them has to be there.

    Raises `UserError`, naming the file, where one cannot be read.
    """
    folder = Path(folder)
    students = [Profile.load(path) for path in sorted(folder.glob("student_epoch_*.npz"))]
    teacher, best = (
        Profile.load(path) if path.exists() else None
        for path in (folder / "teacher.npz", folder / "student_best.npz")
    )
    return RunProfiles(students, teacher, best)


def load_metrics(run_dir: str | os.PathLike[str]) -> list[dict[str, float]]:
    """The rows of a run's metrics.csv, one an epoch, without the empty cells; [] without the file.

    A row that was cut short is left out.
    """
    return _metrics(Path(run_dir))[0]


def _fit(path: Path) -> Run:
    starts, warnings = _starts(path)
    config, said = _config(path)
    metrics, more = _metrics(path)
    profiles, unreadable = _profiles(path / "dynamics")
    run = Run(
        name=path.resolve().name,
        path=path,
        kind="fit",
        profiles=profiles,
        metrics=metrics,
        config=config,
        starts=starts,
        range=_range([profile for _, profile in profiles.named()]),
    )
    warnings += [*said, *more, *unreadable, *_end(run), *_missing(run), *_changes(starts), *_inner(run)]
    return replace(run, warnings=warnings)


def _starts(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    try:
        starts = json.loads((path / "run.json").read_text(encoding="utf-8"))["starts"]
        if all(isinstance(start, dict) for start in starts):
            return starts, [] if starts else ["Training has not begun: run.json records no start."]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return [], ["run.json cannot be read: when, from what and how the run was started is not known."]


def _config(path: Path) -> tuple[dict[str, Any], list[str]]:
    file = path / "config.yaml"
    if not file.exists():
        return {}, ["No configuration: there is no config.yaml."]
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8", errors="replace"))
    except yaml.YAMLError:
        config = None
    if isinstance(config, dict):
        return config, []
    return {}, ["No configuration: config.yaml is not readable YAML."]


def _metrics(path: Path) -> tuple[list[dict[str, float]], list[str]]:
    file = path / "metrics.csv"
    if not file.exists():
        return [], []
    text = file.read_text(encoding="utf-8", errors="replace")
    header, *lines = list(csv.reader(text.splitlines())) or [[]]
    rows, broken = [], 0
    for number, cells in enumerate(lines, start=1):
        cut = number == len(lines) and not text.endswith(("\n", "\r"))  # its last number may lack digits
        try:
            row = {name: float(cell) for name, cell in zip(header, cells, strict=True) if cell != ""}
        except ValueError:
            row = {}
        if "epoch" in row and math.isfinite(row["epoch"]) and not cut:
            rows.append(row)
        else:
            broken += 1
    some = "1 row" if broken == 1 else f"{broken} rows"
    return rows, [f"metrics.csv: {some} cut short or damaged, left out."] if broken else []


def _profiles(folder: Path) -> tuple[RunProfiles, list[str]]:
    """As `load_profiles`, but for what cannot be read or does not fit the others: that is told."""
    found, warnings = _readable([*sorted(folder.glob("student_epoch_*.npz")), *map(folder.joinpath, _OTHERS)])
    teacher, best = (found.pop(folder / name, None) for name in _OTHERS)
    return _fitting(list(found.values()), teacher, best, warnings), warnings


_OTHERS = ("teacher.npz", "student_best.npz")


def _readable(files: Iterable[Path]) -> tuple[dict[Path, Profile], list[str]]:
    """The Profiles of those files that are there and can be read; one sentence a reason why others cannot."""
    found: dict[Path, Profile] = {}
    reasons: dict[str, list[str]] = {}
    for file in files:
        try:
            if file.exists():
                found[file] = Profile.load(file)
        except UserError as error:
            reason = str(error).removeprefix(f"{file}: ")
            reasons.setdefault(reason, []).append(file.name)
    return found, [f"Left out: {listed(names)}: {reason}." for reason, names in reasons.items()]


def _fitting(
    students: list[Profile], teacher: Profile | None, best: Profile | None, warnings: list[str]
) -> RunProfiles:
    """Students of one depth and of an epoch each, in order: what one figure can show."""
    fitting: dict[int, Profile] = {}
    depth = next((len(profile.layers) for profile in (*students, best) if profile), 0)
    for student in students:
        if student.epoch is None or student.epoch in fitting or len(student.layers) != depth:
            warnings.append(
                f"A Profile of epoch {student.epoch} with {len(student.layers)} layers is left out: it does "
                f"not fit the others ({depth} layers, one an epoch)."
            )
        else:
            fitting[student.epoch] = student
    if best is not None and len(best.layers) != depth:
        warnings.append(
            f"The Profile of the best student is left out: it has {len(best.layers)} layers, not {depth}."
        )
        best = None
    return RunProfiles([fitting[epoch] for epoch in sorted(fitting)], teacher, best)


def _end(run: Run) -> list[str]:
    """What to know about how the run ended."""
    planned = _planned_epochs(run.config)
    done = f"{run.epochs} of {planned} epochs" if planned else f"{run.epochs} epochs"
    said = []
    last = run._last_start
    if "ended" in last and last["ended"] is None:
        said.append(f"Not ended: the run is still going, or was killed; {done} so far.")
    elif (ended := last.get("ended")) and ended.get("error"):
        said.append(f"The run stopped on an error after {done}: {ended['error']}")
    elif run.starts and planned and run.epochs < planned:
        said.append(f"The run has {done}.")
    lost = [int(row["epoch"]) for row in run.metrics if not math.isfinite(row.get("train/loss", 0.0))]
    if lost:
        said.append(f"The training loss is not a finite number at epoch {lost[0]}: training diverged.")
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
    best, students = run.profiles.best, run.profiles.students
    scored = [row for row in run.metrics if "val/acc1" in row]
    if best is not None and scored:  # continued after its end, not ended again
        epoch = int(max(scored, key=lambda row: row["val/acc1"])["epoch"])
        if best.epoch not in (None, epoch):
            said.append(
                f"The Profile of the best student is of epoch {best.epoch}, the best now is epoch {epoch}: "
                "fit has not ended since."
            )
    reached = max((int(row["epoch"]) for row in run.metrics), default=None)
    if students and reached is not None and (students[-1].epoch or 0) > reached:
        said.append(
            f"Profiles go on to epoch {students[-1].epoch}, metrics.csv ends at {reached}: the run was "
            "continued from an earlier epoch, and the later Profiles are of the part that is run again."
        )
    return said


def _changes(starts: list[dict[str, Any]]) -> list[str]:
    """What a continued run was continued with, where it is not what it was started with."""
    said = []
    for before, after in pairwise(starts):
        old, new = _circumstances(before), _circumstances(after)
        changed = [
            f"{name} {old[name]}, then {new[name]}" for name in old if new.get(name, old[name]) != old[name]
        ]
        if changed:
            said.append(f"Continued at epoch {after.get('from_epoch')} with changes: {'; '.join(changed)}.")
    return said


def _circumstances(start: dict[str, Any]) -> dict[str, str]:
    """Facts about a start that may change its numbers."""
    facts = {
        **{name: start.get(name) for name in ("seed", "commit", "devices", "images_a_step", "python")},
        "data": (start.get("data") or {}).get("fingerprint"),
        **(start.get("versions") or {}),
    }
    return {name: str(fact) for name, fact in facts.items() if fact is not None}


def _planned_epochs(config: dict[str, Any]) -> int | None:
    planned = (config.get("trainer") or {}).get("max_epochs")
    return planned if isinstance(planned, int) and planned > 0 else None


# --- the other kinds ----------------------------------------------------------------------------------


def _analysis(path: Path) -> list[Run]:
    record = path / "analysis.json"
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
        schema, curves = content["schema"], content["curves"]
        keys = [(str(curve["label"]), str(curve["range"]), str(curve["profile"])) for curve in curves]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{record}: not readable as the record of an analysis") from None
    if schema != ANALYSIS_SCHEMA:
        raise UserError(
            f"{record}: schema {schema} is unknown to this version of distill_dynamics, which reads schema "
            f"{ANALYSIS_SCHEMA}"
        )
    start = {name: content[name] for name in ("command", "versions") if name in content}
    images = content.get("images") or {}
    start["images"] = {name: images[name] for name in ("source", "n", "seed") if name in images}
    several = len({value_range for _, value_range, _ in keys}) > 1
    runs = []
    for label, value_range in dict.fromkeys(key[:2] for key in keys):
        files = {
            path / file: bool(curve.get("best"))
            for curve, (*group, file) in zip(curves, keys, strict=True)
            if group == [label, value_range]
        }
        found, warnings = _readable(files)
        warnings += [f"There is no {file}." for file in files if not file.exists()]
        best = next((profile for file, profile in found.items() if files[file]), None)
        students = [p for file, p in found.items() if not files[file] and p.epoch is not None]
        models = [p for file, p in found.items() if not files[file] and p.epoch is None]
        runs.append(
            Run(
                name=f"{label} ({value_range})" if several else label,
                path=path,
                kind="analysis",
                profiles=_fitting(students, None, best, warnings),
                starts=[start],
                warnings=warnings,
                range=value_range,
                models=models,
            )
        )
    return runs


def _published(path: Path) -> Run:
    students, best, warnings = read_published(path)
    return Run(
        name=path.stem,
        path=path,
        kind="published",
        profiles=RunProfiles(students, None, best),
        warnings=warnings,
        range="global",
    )


def _range(profiles: list[Profile]) -> str:
    if not profiles:
        return ""
    first = profiles[0]
    return first.range_mode if first.range_mode != "explicit" else "{:g},{:g}".format(*first.value_range[0])


# --- runs beside one another --------------------------------------------------------------------------


def comparison_warnings(runs: Sequence[Run]) -> list[str]:
    """In what these runs differ that must not be taken for a difference of method, in sentences."""
    said = []
    known = _by(runs, lambda run: _probe(run) or None)
    if len(known) > 1:
        said.append(f"Different probe images: {_sets(known)}. The curves differ by the images, too.")
    unknown = [run.name for run in runs if run.latest is not None and not _probe(run)]
    if unknown and len(runs) > 1:
        said.append(f"The images behind {listed(unknown)} are not known, and may differ.")
    facets: list[tuple[str, Callable[[Run], Any], str]] = [
        ("value ranges", lambda run: run.range or None, "entropies compare only within one range"),
        ("numbers of bins", lambda run: run.latest and run.latest.bins, "entropies do not compare"),
        (
            "depths",
            lambda run: run.latest and f"{len(run.latest.layers)} layers",
            "blocks compare only by their relative depth",
        ),
        (
            "students",
            lambda run: run.latest.model if run.latest and run.kind == "fit" else None,
            "not only the method differs",
        ),
        (
            "teachers",
            lambda run: run.profiles.teacher and run.profiles.teacher.model,
            "not only the method differs",
        ),
    ]
    for what, key, consequence in facets:
        values = _by(runs, key)
        if len(values) > 1:
            shown = "; ".join(f"{value} in {listed(names)}" for value, names in values.items())
            said.append(f"Different {what}: {shown}; {consequence}.")
    data = _by(runs, lambda run: run.data)
    if len(data) > 1:
        said.append(f"Different data: {_sets(data)}. Their accuracies are not on the same images.")
    for package in ("torch", "timm", "distill_dynamics"):
        versions = _by(runs, partial(_fact, name=package))
        if len(versions) > 1:
            shown = "; ".join(f"{version} in {listed(names)}" for version, names in versions.items())
            said.append(f"Different versions of {package}: {shown}.")
    return said


def _probe(run: Run) -> str:
    return run.latest.probe_id if run.latest is not None else ""


def _fact(run: Run, name: str) -> str | None:
    return _circumstances(run.starts[-1]).get(name) if run.starts else None


def _by(runs: Sequence[Run], key: Callable[[Run], Any]) -> dict[Any, list[str]]:
    """Names of the runs by the value of `key`, without those that have none."""
    found: dict[Any, list[str]] = {}
    for run in runs:
        if (value := key(run)) is not None:
            found.setdefault(value, []).append(run.name)
    return found


def _sets(values: dict[Any, list[str]]) -> str:
    return "; others in ".join(f"{listed(names)}" for names in values.values())


def listed(names: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
