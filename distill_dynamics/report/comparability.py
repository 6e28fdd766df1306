"""Runs beside one another: what must not be taken for a difference of method."""

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from distill_dynamics.dynamics.profile import Profile
from distill_dynamics.figures.order import alike
from distill_dynamics.report.fit_warnings import circumstances
from distill_dynamics.report.records import Run
from distill_dynamics.text import counted, listed

_Facet = Callable[[Run], Any]
"""What a run is in one respect; None where that is unknown, and so no difference."""


def comparison_warnings(runs: Sequence[Run]) -> list[str]:
    """In what these runs differ that must not be taken for a difference of method, in sentences."""
    warnings = list(_images(runs))
    facets: list[tuple[str, _Facet, str]] = [
        ("value ranges", lambda run: run.range or None, "entropies compare only within one range"),
        ("numbers of bins", lambda run: run.latest and run.latest.bins, "entropies do not compare"),
        (
            "depths",
            lambda run: run.latest and counted(len(run.latest.layers), "layer"),
            "blocks compare only by their relative depth",
        ),
    ]
    for what, facet, consequence in facets:
        names = _names_by(runs, facet)
        if len(names) > 1:
            warnings.append(f"Different {what}: {_values(names)}; {consequence}.")
    teachers = [run.profiles.teacher for run in runs if run.profiles.teacher is not None]
    for role in ("student", "teacher"):
        models: dict[str, _Facet] = {
            f"{role}s": partial(_of_model, role, lambda model: model.model),
            f"widths of the {role}": partial(_of_model, role, _width),
            f"timm_kwargs of the {role}": partial(_arguments, role),
        }
        if role == "teacher":  # the weights of a student are what training makes
            models["weights of the teacher"] = partial(_of_model, role, partial(_weights, teachers))
        for what, facet in models.items():
            names = _names_by(runs, facet)
            if len(names) > 1:
                warnings.append(f"Different {what}: {_values(names)}; not only the method differs.")
                break
    data = _names_by(runs, lambda run: run.data)
    if len(data) > 1:
        warnings.append(f"Different data: {_sets(data)}. Their accuracies are not on the same images.")
    for package in ("torch", "timm", "distill_dynamics"):
        versions = _names_by(runs, partial(_fact, package))
        if len(versions) > 1:
            warnings.append(f"Different versions of {package}: {_values(versions)}.")
    return warnings


def _fact(name: str, run: Run) -> str | None:
    return circumstances(run.last_start).get(name)


def _names_by(runs: Sequence[Run], facet: _Facet) -> dict[Any, list[str]]:
    """Labels of the runs by what they are in one respect, where that is known."""
    names: dict[Any, dict[str, None]] = {}
    for run in runs:
        if (value := facet(run)) is not None:
            names.setdefault(value, {})[run.label] = None
    return {value: [*labels] for value, labels in names.items()}


def _values(names: dict[Any, list[str]]) -> str:
    return "; ".join(f"{value} in {listed(labels)}" for value, labels in names.items())


def _sets(names: dict[Any, list[str]]) -> str:
    return "; others in ".join(map(listed, names.values()))


def _images(runs: Sequence[Run]) -> Iterator[str]:
    """Which runs were probed with the same images: of one hash of their pixels, or of one list of files."""
    probed = [run for run in runs if run.latest is not None]
    sets: list[set[str]] = []
    for run in probed:
        if keys := _image_keys(run):
            joined = [other for other in sets if other & keys]
            sets = [other for other in sets if not other & keys] + [keys.union(*joined)]
    number = {key: index for index, keys in enumerate(sets) for key in keys}
    known = _names_by(probed, lambda run: next((number[key] for key in _image_keys(run)), None))
    if len(known) > 1:
        yield f"Different probe images: {_sets(known)}. The curves differ by the images, too."
    hashes = {run.latest.probe_id for run in probed if run.latest}
    if any(len(keys & hashes) > 1 for keys in sets):
        yield "The models of an analysis saw the same images, each in a size and crop of its own."
    if (unknown := [run.name for run in probed if not _image_keys(run)]) and len(runs) > 1:
        yield f"The images behind {listed(unknown)} are not known, and may differ."


def _image_keys(run: Run) -> set[str]:
    return {key for key in (run.latest.probe_id if run.latest else "", run.images) if key}


def _of_model(role: str, describe: Callable[[Profile], str | None], run: Run) -> str | None:
    model = run.profiles.teacher if role == "teacher" else run.latest if run.kind == "fit" else None
    return None if model is None else describe(model)


def _width(model: Profile) -> str | None:
    widths = sorted({len(spectrum) for spectrum in model.spectrum} - {0})
    return f"{' to '.join(map(str, widths[:: max(1, len(widths) - 1)]))} channels" if widths else None


def _arguments(role: str, run: Run) -> str | None:
    """timm_kwargs of the configuration, which may have been written in the short form."""
    given = (run.config.get("model") or {}).get(role)
    arguments = (given.get("init_args") or given) if isinstance(given, dict) else None
    return (
        json.dumps(arguments.get("timm_kwargs") or {}, default=str) if isinstance(arguments, dict) else None
    )


def _weights(teachers: Sequence[Profile], teacher: Profile) -> str | None:
    """Teachers of one name told apart by their curves; None for other probe images than the first one's."""
    known = [other for other in teachers if other.probe_id]
    if not known or teacher.probe_id != known[0].probe_id:
        return None
    firsts: list[Profile] = []
    for other in known:
        if other.probe_id == known[0].probe_id and not any(alike(other, first) for first in firsts):
            firsts.append(other)
    return f"weights {1 + next(n for n, first in enumerate(firsts) if alike(teacher, first))}"
