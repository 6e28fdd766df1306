"""Loading what a report is about: run directories of `fit`, folders of `analyze`, published curves."""

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from distill_dynamics.errors import UserError
from distill_dynamics.report.fit_run import read_fit
from distill_dynamics.report.published import is_published, read_published
from distill_dynamics.report.records import ANALYSIS_SCHEMA, Run, fitting, left_out
from distill_dynamics.runs.profiles import RunProfiles, read_profile
from distill_dynamics.runs.read import Unreadable, read_json
from distill_dynamics.runs.scores import OF_FEATURES


def load_runs(paths: Iterable[str | os.PathLike[str]]) -> list[Run]:
    """Read run directories, folders of `analyze`, published CSV files and folders of these, in this order.

    A folder of `analyze` gives one Run a label and range. A path given twice is read once. Runs of one label
    are told apart by the folders they lie in; those of one analysis stay together.

    Raises `UserError` where a path is none of these.
    """
    distinct = {os.path.realpath(path): Path(path) for path in paths}  # resolve() raises where links go round
    return _uniquely_named([run for path in distinct.values() for run in _load(path)])


def _load(path: Path) -> list[Run]:
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    if path.is_file():
        return [_published(path)]
    if (path / "run.json").exists():
        return [read_fit(path)]
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
    """Put as many parent folders before a label as it takes to tell it from those of other paths."""
    labels = [run.label for run in runs]
    folders = [
        [*run.path.resolve().parts[:-1], *([run.path.resolve().name] if run.kind == "analysis" else [])]
        for run in runs
    ]
    for depth in range(1, max(map(len, folders), default=0) + 1):
        owners = [(run.path, label) for run, label in zip(runs, labels, strict=True)]
        named = [run.relabelled(label).name for run, label in zip(runs, labels, strict=True)]
        labels = [
            "/".join([*folder[-depth:], run.label])
            if named.count(name) > 1 or len({path for path, other in owners if other == label}) > 1
            else label
            for run, folder, label, name in zip(runs, folders, labels, named, strict=True)
        ]
    return [run.relabelled(label) for run, label in zip(runs, labels, strict=True)]


def _analysis(path: Path) -> list[Run]:
    record = path / "analysis.json"
    try:
        content = read_json(record)
        schema, curves = content["schema"], content["curves"]
        keys = [(str(curve["label"]), str(curve["range"]), str(curve["profile"])) for curve in curves]
        widths = [[path / str(file) for file in curve.get("further_widths") or []] for curve in curves]
        images = dict(content.get("images") or {})
        same = {name: images[name] for name in ("source", "files", "indices") if name in images}
    except (Unreadable, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{record}: not readable as the record of an analysis") from None
    if schema != ANALYSIS_SCHEMA:
        raise UserError(
            f"{record}: schema {schema} is unknown to this version of distill_dynamics, which reads schema "
            f"{ANALYSIS_SCHEMA}"
        )
    start = {name: content[name] for name in ("command", "versions", "bootstrap") if name in content}
    if _are_facts(content.get("knn")):
        start["knn"] = content["knn"]
    start["images"] = {name: images[name] for name in ("source", "n", "seed") if name in images}
    several = len({value_range for _, value_range, _ in keys}) > 1
    runs = []
    for label, value_range in dict.fromkeys(key[:2] for key in keys):
        own = [curve for curve, key in zip(curves, keys, strict=True) if key[:2] == (label, value_range)]
        files = {path / str(curve["profile"]): bool(curve.get("best")) for curve in own}
        unreadable: dict[str, list[str]] = {}
        read = {file: read_profile(file, unreadable) for file in files}
        further = [
            read_profile(file, unreadable)
            for of_curve, (*group, _) in zip(widths, keys, strict=True)
            if group == [label, value_range]
            for file in of_curve
        ]
        warnings = left_out(unreadable)
        warnings += [f"There is no {file}." for file in files if not file.exists()]
        best = next((profile for file, profile in read.items() if files[file]), None)
        others = [profile for file, profile in read.items() if profile is not None and not files[file]]
        students = [profile for profile in others if profile.epoch is not None]
        models = [profile for profile in others if profile.epoch is None]
        runs.append(
            Run(
                name=f"{label} ({value_range})" if several else label,
                label=label,
                path=path,
                kind="analysis",
                profiles=fitting(students, None, best, warnings),
                starts=[start],
                warnings=warnings,
                range=value_range,
                models=models,
                widths=[profile for profile in further if profile is not None],
                quality=_quality(own),
                images=json.dumps(same) if len(same) > 1 else "",
            )
        )
    return runs


def _quality(curves: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """By epoch, of those curves of one model of whose weights it is known."""
    found = {}
    for curve in curves:
        if isinstance(known := curve.get("quality"), dict):
            values = {score.name: known.get(score.name) for score in OF_FEATURES}
            epoch = "" if curve.get("epoch") is None else f"epoch {curve['epoch']}"
            found["best" if curve.get("best") else epoch] = {
                name: value if isinstance(value, float) else math.nan for name, value in values.items()
            }
    return found


def _are_facts(knn: Any) -> bool:
    """Whether a record tells of the labelled images of its analysis."""
    if not isinstance(knn, dict) or not isinstance(knn.get("source"), str):
        return False
    counts = (knn.get(name) for name in ("bank", "queries", "classes"))
    return all(isinstance(count, int) and 0 < count < 2**31 for count in counts)


def _published(path: Path) -> Run:
    students, best, warnings = read_published(path)
    return Run(
        name=path.stem,
        label=path.stem,
        path=path,
        kind="published",
        profiles=RunProfiles(students, None, best),
        warnings=warnings,
        range="global",
    )
