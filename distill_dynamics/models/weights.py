"""Weights from a file: what of its content they are, and what the file says of itself.

Which of a file's states fits a model is settled in `fitting.py`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor

from distill_dynamics.errors import UserError, first_line

PACKAGED = "packaged:"
"""Prefix of a `checkpoint` that lies in the package itself (`distill_dynamics/weights`)."""

_DESCRIPTION = ("timm_name", "timm_kwargs", "mean", "std", "evaluation")
_ACCURACY = ("val_acc1", "test_acc1")


class Weights(NamedTuple):
    """What a file holds."""

    path: str
    states: dict[str, dict[str, Tensor]]
    """State dicts by their place in the file ("model.state_dict"); the file itself is "" """
    description: dict[str, Any]
    """`Backbone.description()` of the model that they are of, where the file tells; else empty."""
    accuracy: float | None
    """Top-1 in percent that the file gives for them, None where it gives none."""


def read_weights(checkpoint: str | os.PathLike) -> Weights:
    """Read a file. Raises UserError where it is missing, damaged, or holds no weights."""
    path = os.path.expanduser(checkpoint)
    if path.startswith(PACKAGED):
        name = path.removeprefix(PACKAGED)
        folder = Path(str(resources.files("distill_dynamics"))) / "weights"
        names = sorted(file.stem for file in folder.glob("*.safetensors"))
        if name not in names:
            raise UserError(f"no packaged weights {name!r}; there are: {', '.join(names) or 'none'}")
        path = str(folder / f"{name}.safetensors")
    if not Path(path).is_file():
        begins = "" if os.path.isabs(path) else f" (in {os.getcwd()}, where the command is run)"
        raise UserError(f"checkpoint: no such file: {path}{begins}")
    return _read_safetensors(path) if path.endswith(".safetensors") else _read_pickle(path)


def _read_safetensors(path: str) -> Weights:
    metadata = header(path)
    description = {key: metadata[key] for key in _DESCRIPTION if key in metadata}
    return Weights(path, {"": safetensors.torch.load_file(path)}, description, stated_accuracy(metadata))


def header(path: str | os.PathLike) -> dict[str, Any]:
    """What a safetensors file of this project says of itself, by name; empty for other files.

    Raises UserError for a file that is cut off, and for values that no model can have.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(
            f"checkpoint: {path} is not a whole safetensors file ({first_line(error)})"
        ) from error
    if "timm_name" not in metadata:
        return {}
    known = {}
    for key, text in metadata.items():
        try:
            known[key] = text if key == "format" else json.loads(text)
        except ValueError as error:
            raise UserError(f"checkpoint: {path}: its {key!r} is no JSON: {text[:60]!r}") from error
    if lacking := {"timm_kwargs", "mean", "std"} - known.keys():
        raise UserError(f"checkpoint: {path}: its header has a timm_name and no {min(lacking)}")
    _check_description(path, known)
    return known


def _check_description(path: str | os.PathLike, known: Mapping[str, Any]) -> None:
    """UserError for a value that no model can have: images would be made by it without a word."""
    evaluation = known.get("evaluation", {})
    size = evaluation.get("image_size") if isinstance(evaluation, dict) else None
    right = {
        "timm_name": isinstance(known["timm_name"], str),
        "timm_kwargs": isinstance(known["timm_kwargs"], dict),
        "mean": are_numbers(known["mean"]),
        "std": are_numbers(known["std"]) and min(known["std"]) > 0,
        "evaluation": isinstance(evaluation, dict)
        and (size is None or (are_numbers(size) and len(size) == 2 and min(size) >= 1))
        and are_numbers([crop := evaluation.get("crop_pct", 1.0)])
        and crop > 0
        and isinstance(evaluation.get("interpolation", ""), str),
    }
    for key, is_right in right.items():
        if not is_right:
            raise UserError(f"checkpoint: {path}: its {key!r} cannot be {str(known[key])[:60]}")


def are_numbers(values: Any) -> bool:
    """Whether it is a list of at least one finite number."""
    return (
        isinstance(values, (list, tuple))
        and len(values) > 0
        and all(isinstance(v, (int, float)) and math.isfinite(v) for v in values)
    )


def stated_accuracy(metadata: Mapping[str, Any]) -> float | None:
    """Top-1 in percent, from the header of a file of this project."""
    for key in _ACCURACY:
        if isinstance(value := metadata.get(key), (int, float)):
            return float(value)
    return None


def completed_epochs(checkpoint: str | os.PathLike) -> int | None:
    """After how many epochs a file of this project was written, from its content; None for other files."""
    path = os.fspath(checkpoint)
    if os.path.isdir(path):
        path = os.path.join(path, "model.safetensors")
    try:
        if path.endswith(".safetensors"):
            return header(path).get("epoch")
        with torch.serialization.safe_globals([argparse.Namespace]):
            # Mapped: the weights are not read.
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # damaged or in an older format; whoever loads the weights will say
        return None
    return content["epoch"] + 1 if isinstance(content, dict) and "distill_dynamics" in content else None


def _read_pickle(path: str) -> Weights:
    # DeiT-style training scripts save their argparse.Namespace beside the weights.
    with torch.serialization.safe_globals([argparse.Namespace]):
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged file fails in any of a dozen ways
            foreign = re.search(r"GLOBAL (\S+)", str(error))
            reason = f"it holds {foreign[1]}" if foreign else "it is damaged or no checkpoint"
            raise UserError(
                f"checkpoint: {path} cannot be read as weights alone: {reason}; save the state_dict as "
                "safetensors instead"
            ) from error
    content = content if isinstance(content, dict) else {}
    if "distill_dynamics" in content:
        student = {
            key.removeprefix("student.model."): value
            for key, value in content["state_dict"].items()
            if key.startswith("student.model.")
        }
        description = content["distill_dynamics"]["student"]
        _check_description(path, description)
        return Weights(path, {"": student}, description, _score(content))
    states = dict(_states(content))
    if not states:
        raise UserError(
            f"checkpoint: {path} holds no state_dict (looked for 'model', 'state_dict', or plain tensors)"
        )
    return Weights(path, states, {}, None)


def _score(content: Mapping[str, Any]) -> float | None:
    """val/acc1 of the epoch in which a checkpoint of `fit` was written, if it was validated then."""
    for state in content.get("callbacks", {}).values():
        if isinstance(state, dict) and state.get("monitor") == "val/acc1":
            score = state.get("current_score")
            return None if score is None else float(score)
    return None


# Averages of gradients have the weights' names and shapes.
_NO_WEIGHTS = re.compile(r"optim|sched|exp_avg|momentum|(^|_)opt($|_)", re.IGNORECASE)


def _states(content: Mapping[Any, Any], place: str = "", depth: int = 3) -> Iterator[tuple[str, dict]]:
    """Every dict of tensors in a checkpoint, with its place."""
    tensors = {
        key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)
    }
    if tensors:
        yield place, tensors
    for key, value in content.items():
        if isinstance(key, str) and isinstance(value, Mapping) and depth and not _NO_WEIGHTS.search(key):
            yield from _states(value, f"{place}.{key}" if place else key, depth - 1)
