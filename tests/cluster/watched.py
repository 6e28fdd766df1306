"""An experiment that tells when an epoch is under way, so that a test can strike in the middle."""

import os
import subprocess
import sys
from pathlib import Path

from lightning.pytorch import Callback

STEPS, MARKED = 150, 30
EPOCHS = 3


class Marks(Callback):
    """Makes a file `folder/N_RANK` in the middle of epoch N, which holds this rank's process id."""

    def __init__(self, folder: str):
        self.folder = folder

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if batch_idx == MARKED:
            path = Path(self.folder, f"{trainer.current_epoch + 1}_{trainer.global_rank}")
            path.with_suffix(".partial").write_text(str(os.getpid()))
            path.with_suffix(".partial").replace(path)


def watched(experiment, tmp_path, monkeypatch) -> Path:
    """The config. Its run `whole`, which nothing has interrupted, is already there."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    marks = {"class_path": "watched.Marks", "init_args": {"folder": str(tmp_path)}}
    config = experiment(
        trainer__max_epochs=EPOCHS,
        trainer__limit_train_batches=STEPS,
        trainer__callbacks=[marks],
        probe__every_n_epochs=2,
    )
    command = [sys.executable, "-m", "distill_dynamics", "fit", "--config", config, "--name", "whole"]
    command += ["--trainer.devices", "2"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for mark in tmp_path.glob("?_?"):
        mark.unlink()
    return config
