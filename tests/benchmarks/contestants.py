"""One training step by this tool, as its command has it, beside `peers`: the same models, losses and rates.

Student and teacher have the same normalisation.
"""

import tempfile
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import yaml
from peers import BETA, DECAY, LR
from sizes import SIZES
from turns import Pause

from distill_dynamics.cli.main import main

_pause: Pause


class PauseEachStep(pl.Callback):
    """Whatever the Trainer, its callbacks and loggers do lies between two calls."""

    def on_train_batch_start(self, *args: object) -> None:
        _pause()


ENDS = {"first": 1, "last": 1}


def config(size: str, *, teacher: bool = True, term: dict[str, int] | None = None) -> dict[str, Any]:
    """An experiment with the rest as it is by default: progress bar, loggers, checkpoints, preemption."""
    models = SIZES[size]
    model: dict[str, Any] = {
        "student": {"name": models.student, "timm_kwargs": models.student_kwargs},
        "optimizer": {
            "class_path": "torch.optim.AdamW",
            "init_args": {"lr": LR, "weight_decay": DECAY, "fused": True},
        },
        "lr_images": None,
    }
    if teacher:
        model["teacher"] = {"name": models.teacher, "timm_kwargs": models.teacher_kwargs}
    if term:
        spectral = {"class_path": "distill_dynamics.losses.SpectralKD"}
        model["terms"] = {"spectral": {"loss": spectral, "weight": BETA, **term}}
    return {
        "model": model,
        "data": {"class_path": "sizes.Made", "init_args": {"size": size}},
        "trainer": {"max_epochs": 1, "limit_val_batches": 0, "accelerator": "cpu"},
        "probe": {"every_n_epochs": 1000, "n_images": 1},
    }


def this_tool(pause: Pause, settings: dict[str, Any]) -> None:
    """`fit`, the whole command."""
    global _pause
    _pause = pause
    with tempfile.TemporaryDirectory() as folder:
        callback = {"class_path": "contestants.PauseEachStep"}
        settings["trainer"]["callbacks"] = [callback]
        main(["fit", "--config", write(settings, folder), "--runs_dir", folder])


def write(settings: dict[str, Any], folder: str) -> str:
    """The path of a config file with these settings."""
    path = Path(folder, "experiment.yaml")
    path.write_text(yaml.safe_dump(settings))
    return str(path)
