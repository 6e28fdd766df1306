"""Runs beside one another: what must not be taken for a difference of method."""

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from distill_dynamics.dynamics.profile import Profile
from distill_dynamics.figures.order import alike
from distill_dynamics.report.fit_run import circumstances
from distill_dynamics.report.records import Run, counted, listed

_Facet = Callable[[Run], Any]
"""What a run is in one respect; None where that is unknown, and so no difference."""


def comparison_warnings(runs: Sequence[Run]) -> list[str]:
    """In what these runs differ that must not be taken for a difference of method, in sentences."""
    said = list(_images(runs))
    facets: list[tuple[str, _Facet, str]] = [
        ("value ranges", lambda run: run.range or None, "entropies compare only within one range"),
        ("numbers of bins", lambda run: run.latest and run.latest.bins, "entropies do not compare"),
        (
            "depths",
            lambda run: run.latest and counted(len(run.latest.layers), "layer"),
            "blocks compare only by their relative depth",
        ),
        ("students", _first_that_differs(runs, "student"), "not only the method differs"),
        ("teachers", _first_that_differs(runs, "teacher"), "not only the method differs"),
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


def _images(runs: Sequence[Run]) -> Iterator[str]:
    """Which runs were probed with the same images: of one hash of their pixels, or of one list of files."""
    probed = [run for run in runs if run.latest is not None]
    sets: list[set[str]] = []
    for run in probed:
        if keys := _image_keys(run):
            joined = [other for other in sets if other & keys]
            sets = [other for other in sets if not other & keys] + [keys.union(*joined)]
    number = {key: index for index, keys in enumerate(sets) for key in keys}
    known = _by(probed, lambda run: next((number[key] for key in _image_keys(run)), None))
    if len(known) > 1:
        yield f"Different probe images: {_sets(known)}. The curves differ by the images, too."
    crops = {run.latest.probe_id for run in probed if run.latest}
    if any(len(keys & crops) > 1 for keys in sets):
        yield "The models of an analysis saw the same images, each in a size and crop of its own."
    if (unknown := [run.name for run in probed if not _image_keys(run)]) and len(runs) > 1:
        yield f"The images behind {listed(unknown)} are not known, and may differ."


def _image_keys(run: Run) -> set[str]:
    return {key for key in (run.latest.probe_id if run.latest else "", run.images) if key}


def _first_that_differs(runs: Sequence[Run], role: str) -> _Facet:
    """What the models of a role are called: by name, width, arguments or weights, where these differ.

    The weights of a student are what training makes; those of teachers differ where their curves do.
    """

    def told(say: Callable[[Run, Profile], str | None]) -> _Facet:
        return lambda run: (model := _model(run, role)) and say(run, model)

    facets = [
        told(lambda _, model: model.model),
        told(lambda _, model: f"{model.model} {_width(model)}".strip()),
        told(lambda run, model: f"{model.model} {_arguments(run, role)}".strip() if run.config else None),
    ]
    if role == "teacher":
        facets.append(told(_weights([run.profiles.teacher for run in runs])))
    return next((facet for facet in facets if len(_by(runs, facet)) > 1), facets[0])


def _model(run: Run, role: str) -> Profile | None:
    if role == "teacher":
        return run.profiles.teacher
    return run.latest if run.kind == "fit" else None


def _width(model: Profile) -> str:
    widths = sorted({len(spectrum) for spectrum in model.spectrum})
    return f"of {' to '.join(map(str, widths[:: max(1, len(widths) - 1)]))} channels" if any(widths) else ""


def _arguments(run: Run, role: str) -> str:
    """timm_kwargs of the configuration, which may have been written in the short form."""
    given = (run.config.get("model") or {}).get(role) or {}
    arguments = (given.get("init_args") or given) if isinstance(given, dict) else {}
    shown = arguments.get("timm_kwargs") if isinstance(arguments, dict) else None
    return f"with timm_kwargs {json.dumps(shown, default=str)}" if shown else ""


def _weights(teachers: Sequence[Profile | None]) -> Callable[[Run, Profile], str | None]:
    """Teachers of one name told apart by their curves; None for other probe images than the first one's."""
    known = [teacher for teacher in teachers if teacher is not None and teacher.probe_id]
    firsts: list[Profile] = []
    for teacher in known:
        if teacher.probe_id == known[0].probe_id and not any(alike(teacher, first) for first in firsts):
            firsts.append(teacher)

    def say(_: Run, model: Profile) -> str | None:
        if not firsts or model.probe_id != firsts[0].probe_id:
            return None
        number = next(number for number, first in enumerate(firsts, start=1) if alike(model, first))
        return f"{model.model} (weights {number})"

    return say


def _fact(run: Run, name: str) -> str | None:
    return circumstances(run.starts[-1]).get(name) if run.starts else None


def _by(runs: Sequence[Run], key: _Facet) -> dict[Any, list[str]]:
    """Labels of the runs by the value of `key`, without those that have none."""
    found: dict[Any, dict[str, None]] = {}
    for run in runs:
        if (value := key(run)) is not None:
            found.setdefault(value, {})[run.label] = None
    return {value: [*names] for value, names in found.items()}


def _sets(values: dict[Any, list[str]]) -> str:
    return "; others in ".join(f"{listed(names)}" for names in values.values())
