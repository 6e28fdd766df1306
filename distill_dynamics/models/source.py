"""A model from what a config says of it: timm's name, a file, a folder in timm's hub layout."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from distill_dynamics.errors import UserError
from distill_dynamics.models import (
    hub,
    reshape,  # noqa: F401 (which has timm know its architectures)
)
from distill_dynamics.models.create import architecture, create
from distill_dynamics.models.match_weights import NewHead, load, tell_changes
from distill_dynamics.models.weights import header, read_weights, stated_accuracy


class Source(NamedTuple):
    """A timm model, and where it is from."""

    model: Any
    name: str
    timm_kwargs: dict[str, Any]
    description: dict[str, Any]
    """`Backbone.description()` of the model that the weights were written from, where their file tells."""
    stated_accuracy: float | None
    is_recorded: bool
    """Whether its mean and std are those of its weights: by their file, or by timm's record of them."""
    new_head: NewHead


def make(
    name: str | None, pretrained: bool, checkpoint: str | os.PathLike | None, given: dict[str, Any]
) -> Source:
    """Make the model with the keywords `given`, and load its weights. UserError where that cannot be done."""
    if pretrained and checkpoint:
        raise UserError(f"{name or checkpoint}: give either pretrained: true or a checkpoint, not both")
    if checkpoint and Path(os.path.expanduser(checkpoint)).is_dir():
        return _of_folder(name, Path(os.path.expanduser(checkpoint)), given)
    weights = read_weights(checkpoint) if checkpoint else None
    description = weights.description if weights else {}
    name = description.get("timm_name") if name is None else name
    if name is None:
        raise UserError(
            f"{checkpoint} does not say what it is of: give the name of the timm model"
            if checkpoint
            else "give the name of a timm model, or as checkpoint a folder in timm's hub layout"
        )
    same = description and architecture(description["timm_name"]) == architecture(name)
    timm_kwargs = plain({**description["timm_kwargs"], **given}) if same else given
    model = create(name, pretrained, timm_kwargs)
    new_head: NewHead = _head_of_timm(model) if pretrained else ""
    if weights:
        new_head = load(model, weights, name, new_head="num_classes" in given)
    accuracy = weights.accuracy if weights else None
    recorded = bool(description) or pretrained
    return Source(model, name, timm_kwargs, description, accuracy, recorded, new_head)


def _of_folder(name: str | None, folder: Path, given: dict[str, Any]) -> Source:
    config = hub.read_config(folder)
    if name is not None and architecture(name) != config.architecture:
        raise UserError(f"checkpoint: {folder} is of {config.architecture}, and not of {name}")
    model = create(f"local-dir:{folder}", True, given)
    weights = folder / hub.WEIGHTS
    facts = header(weights) if weights.is_file() else {}
    new_head = tell_changes(model, weights) if weights.is_file() else _head_of_timm(model)
    # Ours have the keywords as they were given, too: a cache of this teacher goes by them.
    timm_kwargs = plain({**facts.get("timm_kwargs", config.model_args), **given})
    accuracy = stated_accuracy(facts) or hub.card_accuracy(folder)
    name = facts.get("timm_name", config.architecture)
    return Source(model, name, timm_kwargs, {}, accuracy, True, new_head)


def _head_of_timm(model: Any) -> NewHead:
    """Whether timm has loaded weights of another number of classes, or of none, and made a head anew."""
    published = model.pretrained_cfg.get("num_classes", model.num_classes)
    if model.num_classes in (0, published):
        return ""
    return "other classes" if published else "no head"


def plain(timm_kwargs: dict[str, Any]) -> dict[str, Any]:
    """The keywords as a file will give them back: a deep copy, tuples as lists."""
    try:
        return json.loads(json.dumps(timm_kwargs))
    except TypeError as error:
        raise UserError(
            f"timm_kwargs can be numbers, words, lists and dicts, which a file can carry: {error}"
        ) from error
