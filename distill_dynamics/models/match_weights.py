"""Which of a file's weights are a model's: wrappers, prefixes, averages, heads, position embeddings.

A file is loaded where only one reading of it fits the model whole; else one line says what is in the way.
"""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import takewhile
from typing import Any, Literal, NamedTuple

import safetensors
import torch
from torch import Tensor, nn

from distill_dynamics.errors import UserError
from distill_dynamics.models.weights import Weights

State = Mapping[str, Tensor]

NewHead = Literal["", "no head", "other classes"]
"""Why the head of a model is none of its weights: they have none, or one of other classes; "" where it is."""

_WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""What torch.compile, FSDP and activation checkpointing put into names, wherever they are applied."""

_AVERAGED = re.compile(r"(?<![a-z])(ema|swa|polyak|averaged?)(?![a-z])", re.IGNORECASE)

_ON_A_GRID = ("pos_embed", "relative_position", "rel_pos", "pos_emb")
"""Parameters, by part of their names, that have an entry for each place of a grid of patches."""


class _Reading(NamedTuple):
    """One way to take a file."""

    place: str
    """The state dict in the file, and what its keys begin with."""
    state: dict[str, Tensor]
    changes: list[str]
    """What was changed so that it fits, a line each."""
    problems: list[str]
    matched: int
    """Keys that the model has."""
    new_head: NewHead = ""


class _Head(NamedTuple):
    """A state with a model's own head in it, if that is a new one."""

    state: dict[str, Tensor]
    changes: list[str]
    new_head: NewHead


def load(model: nn.Module, weights: Weights, name: str, new_head: bool) -> NewHead:
    """Load a file's weights into a model; why its head was left as it is, if it was.

    A warning tells of each thing that was changed on the way.

    Beside the state dict itself, one in a wrapper (`{"model_state_dict": ...}`) or with the same prefix
    before every key (`module.`, `encoder.`) is taken. Averaged weights are left alone where the raw ones are
    there. Position embeddings on another grid are resampled as timm does for its own weights
    (`checkpoint_filter_fn`). With `new_head` a file of another number of classes leaves the head as it is.

    Raises UserError where nothing in the file fits, or several things do.
    """
    readings = [
        _read(model, place, state, new_head)
        for where, content in weights.states.items()
        for place, state in _candidates(where, content, model.state_dict())
    ]
    fits = [reading for reading in readings if not reading.problems]
    raw = [reading for reading in fits if not _AVERAGED.search(reading.place)]
    fits = _distinct(raw or fits)
    if len(fits) > 1:
        places = ", ".join(repr(reading.place or "the file itself") for reading in fits)
        raise UserError(
            f"checkpoint: {weights.path} has {len(fits)} sets of weights that fit {name}: {places}; save the "
            "one that is meant alone"
        )
    if not fits:
        raise UserError(_refusal(readings, weights, name))
    model.load_state_dict(fits[0].state)
    for line in fits[0].changes:
        warnings.warn(f"{weights.path}: {line}", stacklevel=2)
    return fits[0].new_head


def tell_changes(model: nn.Module, path: str | os.PathLike) -> NewHead:
    """Warn of what timm changed in a safetensors file's weights when it loaded them; why the head is new.

    It leaves out a head of other classes, resamples position embeddings and patches, and sums or repeats the
    colours of the first convolution, without a word.
    """
    own = model.state_dict()
    with safetensors.safe_open(path, framework="pt") as file:
        shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118 (no mapping)
    stored = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    fitted, lines, why = _with_new_head(model, stored)
    for line in [*_resampled({key: x for key, x in fitted.items() if key in own}, own), *lines]:
        warnings.warn(f"{path}: {line}", stacklevel=2)
    return why


def _candidates(where: str, content: State, own: State) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """A state dict of the file, once for each prefix before at least half of the model's keys."""
    state = {_WRAPPERS.sub("", key): value for key, value in content.items()}
    prefix_counts: Counter[str] = Counter()
    for key in state:
        starts = [0, *(dot.end() for dot in re.finditer(r"\.", key))]
        prefix_counts.update(key[:start] for start in starts if key[start:] in own)
    prefixes = [prefix for prefix, count in prefix_counts.items() if count >= len(own) / 2] or [""]
    for prefix in prefixes:
        place = ".".join(part for part in (where, prefix.removesuffix(".")) if part)
        others = tuple(other for other in prefixes if other != prefix and other.startswith(prefix))
        keys = (key for key in state if key.startswith(prefix) and not key.startswith(others))
        yield place, {key.removeprefix(prefix): state[key] for key in keys}


def _read(model: nn.Module, place: str, state: dict[str, Tensor], new_head: bool) -> _Reading:
    own = model.state_dict()
    matched = len(own.keys() & state.keys())
    plain, changes, why = _with_new_head(model, state) if new_head else _Head(state, [], "")
    problems = _problems(plain, own)
    if problems and matched and (converted := _as_timm_does(model, state)) is not None:
        fitted, head, why_new = _with_new_head(model, converted) if new_head else _Head(converted, [], "")
        if not _problems(fitted, own):
            changes = [*_resampled(state, converted), *head]
            return _Reading(place, fitted, changes, [], matched, why_new)
    return _Reading(place, state if problems else plain, changes, problems, matched, why)


def _problems(state: State, own: State) -> list[str]:
    problems = [
        f"{key} is {list(state[key].shape)} in the file and {list(value.shape)} in the model"
        for key, value in own.items()
        if key in state and state[key].shape != value.shape
    ]
    problems += [f"{key} is missing" for key in own if key not in state]
    return problems + [f"{key} is not in the model" for key in state if key not in own]


def _with_new_head(model: nn.Module, state: dict[str, Tensor]) -> _Head:
    """The state with the model's own head, where the file's is of other classes, or not there."""
    config: Any = getattr(model, "pretrained_cfg", {})
    names = config.get("classifier") or ()
    names = (names,) if isinstance(names, str) else tuple(names)
    keys = {f"{name}.{kind}" for name in names for kind in ("weight", "bias")}
    own = {key: value for key, value in model.state_dict().items() if key in keys}
    theirs = {key: state[key] for key in keys & state.keys()}
    if not keys or (own and theirs and own.keys() != theirs.keys()):
        return _Head(state, [], "")
    if own and theirs:
        same_width = all(theirs[key].shape[1:] == value.shape[1:] for key, value in own.items())
        if not same_width or all(theirs[key].shape == value.shape for key, value in own.items()):
            return _Head(state, [], "")
    classes = {len(value) for value in theirs.values()}
    if len(classes) > 1 or not (own or theirs):
        return _Head(state, [], "")
    rest = {key: value for key, value in state.items() if key not in keys}
    of = f"its head of {min(classes)} classes is left out" if classes else "it has no head"
    fresh = f", and the model has a fresh one of {len(next(iter(own.values())))}" if own else ""
    why: NewHead = "other classes" if classes else "no head"
    return _Head({**rest, **own}, [f"{of}{fresh} (num_classes)"], why)


def _as_timm_does(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """The state as timm adapts its own weights to a model; None where it has no way, or changes more.

    That is where it would resample anything but what has an entry for each place of the grid.
    """
    modules = (sys.modules[kind.__module__] for kind in type(model).__mro__)
    adapt = next((m.checkpoint_filter_fn for m in modules if hasattr(m, "checkpoint_filter_fn")), None)
    if adapt is None:
        return None
    try:
        with torch.no_grad():
            adapted = adapt(dict(state), model)
    except Exception:  # a state of another kind: what does not fit is said of the state as it is
        return None
    changed = [key for key in state if key in adapted and adapted[key].shape != state[key].shape]
    return adapted if all(any(word in key for word in _ON_A_GRID) for key in changed) else None


def _resampled(before: State, after: State) -> list[str]:
    lines = []
    changed = [key for key in before if key in after and after[key].shape != before[key].shape]
    on_a_grid = [key for key in changed if any(word in key for word in _ON_A_GRID)]
    others = [key for key in changed if key not in on_a_grid]  # other channels, other patches
    for keys, what in (
        (on_a_grid, "position embeddings resampled to this input size"),
        (others, "weights of another shape, made to fit as timm does"),
    ):
        if keys:
            one, more = keys[0], f" (and {len(keys) - 1} more)" if len(keys) > 1 else ""
            lines.append(f"{what}: {one} from {list(before[one].shape)} to {list(after[one].shape)}{more}")
    if gone := [key for key in before if key not in after]:
        lines.append(f"renamed or left out as timm does: {gone[0]} ({len(gone)} such)")
    return lines


def _distinct(readings: list[_Reading]) -> list[_Reading]:
    """Without those whose weights another one has."""
    kept: list[_Reading] = []
    for reading in readings:
        if not any(
            all(torch.equal(value, other.state[key]) for key, value in reading.state.items())
            for other in kept
        ):
            kept.append(reading)
    return kept


def _refusal(readings: list[_Reading], weights: Weights, name: str) -> str:
    nearest = max(readings, key=lambda reading: reading.matched)
    source = weights.description
    made_with = f"; the file is of {source['timm_name']} with {source['timm_kwargs']}" if source else ""
    where = f" (of {nearest.place})" if nearest.place else ""
    if not nearest.matched:
        keys = list(nearest.state)
        parts = zip(*(key.split(".")[:-1] for key in keys), strict=False)
        same = [names[0] for names in takewhile(lambda names: len(set(names)) == 1, parts)]
        common = "".join(f"{name}." for name in same)
        which = f"all its keys{where} begin with {common!r}, and" if common else f"of its keys{where}"
        first = keys[0].removeprefix(common)
        problem = f"{which} none is one of the model's: the first is {first!r}"
    else:
        more = f" (and {len(nearest.problems) - 1} more)" if len(nearest.problems) > 1 else ""
        problem = f"{nearest.problems[0]}{where}{more}"
    return f"checkpoint: {weights.path} does not fit {name}: {problem}{made_with}"
