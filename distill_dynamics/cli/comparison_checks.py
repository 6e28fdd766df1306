"""What `fit --baselines` refuses before anything is trained."""

from __future__ import annotations

import os
from itertools import takewhile
from pathlib import Path
from textwrap import shorten
from typing import Any

from lightning.pytorch.plugins.environments import SLURMEnvironment

from distill_dynamics.cli.datamodule import has_validation_images
from distill_dynamics.cli.sweep import in_sweep
from distill_dynamics.errors import UserError
from distill_dynamics.report.methods import differing
from distill_dynamics.runs.read import Unreadable, read_yaml

LAST_SEED = 2**32 - 1


def check_one_process() -> None:
    """UserError where a launcher has started several, or a W&B sweep this one as a run of its own."""
    if in_sweep():
        raise UserError(
            "--baselines and --seeds: a W&B sweep's run is one run; let it go through seeds itself"
        )
    slurm = int(os.environ.get("SLURM_NTASKS", 1)) if SLURMEnvironment.detect() else 1
    if (processes := max(slurm, int(os.environ.get("WORLD_SIZE", 1)))) > 1:
        raise UserError(
            "--baselines and --seeds start their runs from one process, and a launcher has started "
            f"{processes}: leave it out and give --trainer.devices, or launch each run by itself"
        )


def check_config(config: Any, seeds: int) -> None:
    """UserError for a configuration whose runs cannot be repeated, continued or compared."""
    first = config.seed_everything
    if isinstance(first, bool) or not isinstance(first, int):
        raise UserError(f"seed_everything is {first}: seeds are counted from a number, give one")
    if not 0 <= first <= LAST_SEED - seeds + 1:
        raise UserError(
            f"seed_everything: seeds are from 0 to {LAST_SEED}, and {seeds} from {first} on are not"
        )
    if config.trainer.num_nodes > 1:
        raise UserError("--baselines and --seeds run on one machine: trainer.num_nodes is 1")
    if config.trainer.limit_val_batches == 0 or config.trainer.fast_dev_run:
        key = "fast_dev_run" if config.trainer.fast_dev_run else "limit_val_batches"
        raise UserError(
            f"trainer.{key} is {config.trainer[key]}: runs are compared by their top-1 on validation images"
        )
    if not has_validation_images(config.data):
        raise UserError(
            f"data: {config.data.class_path.rpartition('.')[2]} has no validation images here, and runs are "
            "compared by them"
        )
    for path in map(Path, map(str, config.config or [])):
        if path.name.startswith("config") and (path.parent / "run.json").is_file():
            raise UserError(f"--config {path} is a run's own, which would be continued: give a copy of it")


def check_settings(run_dir: Path, config: dict[str, Any]) -> None:
    """UserError where there is a run of that name with other settings."""
    path = run_dir / "config.yaml"
    if not path.exists():
        return  # it was stopped before its first step, or never begun
    try:
        was = read_yaml(path)
        others = differing(was, config)
    except (Unreadable, AttributeError) as error:
        raise UserError(f"{path}: no configuration of a run; give another --name") from error
    if others:
        key, texts = next(iter(others.items()))
        same = [*takewhile(lambda pair: pair[0] == pair[1], zip(*texts, strict=False))]
        start = max(0, len(same) - 20)  # of long lists that end differently
        then, now = (shorten("..." * bool(start) + text[start:], 70) for text in texts)
        more = f" ({len(others) - 1} more settings differ)" if len(others) > 1 else ""
        raise UserError(
            f"{run_dir} was made with {key} {then}, and here it is {now}{more}: give another --name, or "
            "what it was made with"
        )
