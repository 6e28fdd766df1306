"""`config.yaml` of a run: the configuration that it was started with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.cli import SaveConfigCallback

from distill_dynamics.files import atomic_write_text


def config_text(parser: Any, config: Any) -> str:
    """What config.yaml holds of a run."""
    config = config.clone()
    config.ckpt_path = None  # that of one start, and no part of the experiment
    return parser.dump(config, skip_none=False)


class SaveConfig(SaveConfigCallback):
    """Saves the configuration as config.yaml; that of a continued run beside it, if it differs."""

    written: Path | None = None

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Nothing yet: a checkpoint that does not fit the configuration is still to be refused."""

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Write it on the first rank, when all that may be refused has been looked at."""
        if not trainer.is_global_zero:
            return
        text = config_text(self.parser, self.config)
        for logger in trainer.loggers:
            logger.log_hyperparams(yaml.safe_load(text))
        folder = Path(trainer.default_root_dir)
        path, number = folder / "config.yaml", 1
        while path.exists():
            if path.read_text() == text:
                return
            number += 1
            path = folder / f"config_{number}.yaml"
        atomic_write_text(path, text)
        self.written = path
