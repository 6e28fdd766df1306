"""timm's hub layout: a folder with config.json and model.safetensors, local-dir:FOLDER to plain timm."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import timm
import yaml
from timm.models._hub import save_config_for_hf  # timm.models has no name for it without the weights
from torch import nn

from distill_dynamics.errors import UserError
from distill_dynamics.files import atomic_write
from distill_dynamics.models.weights import are_numbers

CONFIG, WEIGHTS = "config.json", "model.safetensors"

# What timm knows of the weights that it publishes for this architecture, and these are others.
_OF_OTHER_WEIGHTS = ("tag", "license", "description", "origin_url", "paper_name", "paper_ids", "notes")


class HubFolder(NamedTuple):
    """What config.json says: timm's name of the architecture and the keywords that it was made with."""

    architecture: str
    model_args: dict[str, Any]


def read_config(folder: Path) -> HubFolder:
    """UserError where the folder is none that timm loads."""
    path = folder / CONFIG
    if not path.is_file():
        hint = f"; did you mean {folder / 'student'}?" if (folder / "student" / CONFIG).is_file() else ""
        raise UserError(
            f"checkpoint: {folder} is a folder without {CONFIG}; a file is wanted, or a folder in timm's hub "
            f"layout ({CONFIG} and {WEIGHTS}), such as a run's student/{hint}"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        name = content["architecture"]
        args = content.get("model_args") or {}
        if not isinstance(name, str) or not isinstance(args, dict):
            raise TypeError("architecture is a name, model_args a mapping")
        recorded = content.get("pretrained_cfg") or {}
        mean, std = recorded.get("mean", [0.5]), recorded.get("std", [0.5])
        if not are_numbers(mean) or not are_numbers(std) or min(std) <= 0:
            raise ValueError(f"mean {mean}, std {std}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"checkpoint: {path} is no config of timm's: {error!r}") from error
    if not timm.is_model(name):
        raise UserError(f"checkpoint: {path} is of {name!r}, which timm does not have")
    if not any(file.suffix in (".safetensors", ".bin", ".pth") for file in folder.iterdir()):
        raise UserError(f"checkpoint: {folder} has a {CONFIG} and no {WEIGHTS}")
    return HubFolder(name, args)


def label_names(config: Path) -> list[str]:
    """Of the classes in their order, by a config.json; [] where it has none."""
    try:
        return [str(name) for name in json.loads(config.read_text(encoding="utf-8"))["label_names"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def card_accuracy(folder: Path) -> float | None:
    """Top-1 in percent by the `model-index` of the model card, README.md; None where it has none."""
    try:
        front = (folder / "README.md").read_text(encoding="utf-8").split("---\n")[1]
        (model,) = yaml.safe_load(front)["model-index"]
        values = [
            float(metric["value"])
            for result in model["results"]
            for metric in result["metrics"]
            if metric["type"] == "accuracy"
        ]
    except (OSError, ValueError, KeyError, IndexError, TypeError, yaml.YAMLError, RecursionError):
        return None  # a card is prose: what is not found in it is not missed
    # By its data sets there may be several. Some give shares, some percent.
    return (100 * values[0] if values[0] <= 1 else values[0]) if len(values) == 1 else None


def write_config(
    folder: Path,
    model: nn.Module,
    model_args: dict[str, Any],
    data_config: dict[str, Any],
    label_names: Sequence[str] | None,
) -> None:
    """Write a config.json: all that timm needs to make the model and its images again.

    `data_config` in timm's words: input_size (C, H, W), mean, std, crop_pct, interpolation, crop_mode.
    """
    with atomic_write(folder / CONFIG) as path:
        save_config_for_hf(
            model,
            str(path),
            model_config={"label_names": list(label_names)} if label_names else None,
            model_args=model_args,
            data_config=data_config,
        )
        content = json.loads(path.read_text())
        for key in _OF_OTHER_WEIGHTS:
            content["pretrained_cfg"].pop(key, None)
        path.write_text(json.dumps(content, indent=2) + "\n")
