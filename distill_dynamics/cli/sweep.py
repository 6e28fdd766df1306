"""What the agent of a W&B sweep says, in the environment, of the run that it starts."""

from __future__ import annotations

import os
from pathlib import Path

import yaml


def in_sweep() -> bool:
    """Whether such an agent has started this process."""
    return "WANDB_SWEEP_ID" in os.environ


def sweep_name(stem: str) -> str | None:
    """A run's name, the same when the agent starts that run again; None outside a sweep."""
    return f"{stem}-{os.environ['WANDB_RUN_ID']}" if in_sweep() else None


def sweep_group(stem: str) -> str:
    """What a run shares with those that differ from it by their seed: "softkd, alpha 0.9". `stem` outside."""
    if not in_sweep():
        return stem
    parameters = yaml.safe_load(Path(os.environ["WANDB_SWEEP_PARAM_PATH"]).read_text())
    values = {
        name.rpartition(".")[2]: given["value"]
        for name, given in parameters.items()
        if isinstance(given, dict) and name != "seed_everything"
    }
    return ", ".join([stem, *(f"{name} {value}" for name, value in values.items())])
