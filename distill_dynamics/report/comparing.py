"""Runs beside one another: what must not be taken for a difference of method."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from distill_dynamics.report.fit_run import circumstances
from distill_dynamics.report.records import Run, curve_labels, listed


def comparison_warnings(runs: Sequence[Run]) -> list[str]:
    """In what these runs differ that must not be taken for a difference of method, in sentences."""
    said = []
    same = _one_set_of_files(runs)
    known = _by(runs, lambda run: same.get(_probe(run), _probe(run)) or None)
    if len(known) > 1:
        said.append(f"Different probe images: {_sets(known)}. The curves differ by the images, too.")
    if any(first != probe for probe, first in same.items()):
        said.append("The models of an analysis saw the same images, each in a size and crop of its own.")
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


def _one_set_of_files(runs: Sequence[Run]) -> dict[str, str]:
    """Probe ids of analysed models → the first one of their analysis: ids are of pixels, after the crop."""
    firsts: dict[Path, str] = {}
    return {
        _probe(run): firsts.setdefault(run.path, _probe(run))
        for run in runs
        if run.kind == "analysis" and _probe(run)
    }


def _probe(run: Run) -> str:
    return run.latest.probe_id if run.latest is not None else ""


def _fact(run: Run, name: str) -> str | None:
    return circumstances(run.starts[-1]).get(name) if run.starts else None


def _by(runs: Sequence[Run], key: Callable[[Run], Any]) -> dict[Any, list[str]]:
    """Labels of the runs by the value of `key`, without those that have none."""
    labels, found = curve_labels(runs), dict[Any, dict[str, None]]()
    for run in runs:
        if (value := key(run)) is not None:
            found.setdefault(value, {})[labels[run.name]] = None
    return {value: [*names] for value, names in found.items()}


def _sets(values: dict[Any, list[str]]) -> str:
    return "; others in ".join(f"{listed(names)}" for names in values.values())
