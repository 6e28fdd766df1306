"""Checkpoint files: written whole or not at all, and the newest whole one of a run found again."""

from __future__ import annotations

import io
import shutil
import sys
import zipfile
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from distill_dynamics.errors import UserError, first_line
from distill_dynamics.files import atomic_write
from distill_dynamics.runs.scores import OF_CLASSES, OF_FEATURES
from distill_dynamics.train.rank import is_first_rank

LAST = "last.ckpt"
"""Of the end of the last epoch."""

BEST_BY = tuple(scores[0].metric for scores in (OF_CLASSES, OF_FEATURES))
"""What the best student may be chosen by."""

PREEMPTED = "preempted.ckpt"
"""Of the middle of an epoch that a signal cut short; gone when that epoch ends after all."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and then moves it there in one step.

    Lightning's own does so through the folder for temporary files, which may be on another file system, where
    a move is a copy that can be cut short; and it does not wait until the file is on the disk.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write it. Raises OSError, naming the file, where the disk is full for one; the old file is left."""
        # In memory first: torch turns the OSError of a file into a RuntimeError without its reason.
        content = io.BytesIO()
        torch.save(checkpoint, content)
        with atomic_write(path) as partial:
            partial.write_bytes(content.getbuffer())


def read_intact(path: Path) -> dict[str, Any]:
    """The content of a checkpoint file, its tensors not yet read into memory.

    Raises UserError, in a line, where the file was cut short or altered (torch keeps a checksum of every
    part) or holds something else.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # what a damaged file raises depends on where it is damaged
        raise UserError(f"{path}: cut short or damaged ({first_line(error)})") from error
    if damaged is not None:
        raise UserError(f"{path}: damaged (in {damaged})")
    if not isinstance(content, dict):
        raise UserError(f"{path}: no checkpoint, but a {type(content).__name__}")
    return content


def newest_intact(run_dir: Path, begun: bool = True) -> Path | None:
    """The newest whole checkpoint of a run; None where there is none. One line on stderr for each left out.

    Of the end of an epoch that is `last.ckpt`, and where it is damaged the one of the most epochs and steps
    among the others. With `begun` it may be `preempted.ckpt`, if that was written since.
    """
    folder = run_dir / "checkpoints"
    last, preempted = folder / LAST, folder / PREEMPTED
    found = _positions([last])
    if not found:
        found = _positions(sorted({*folder.glob("*.ckpt")} - {last, preempted}))
    if begun:
        found |= _positions([preempted])
    return max(found, key=lambda path: found[path], default=None)


def _positions(paths: Iterable[Path]) -> dict[Path, tuple[int, int]]:
    """Those of the files that are there and whole."""
    there = {path: _position(path) for path in paths if path.is_file()}
    return {path: position for path, position in there.items() if position is not None}


def _position(path: Path) -> tuple[int, int] | None:
    """(epoch, step) of a checkpoint that `fit` can go on from; else None, and a line that says why."""
    try:
        content = read_intact(path)
        if not {"epoch", "global_step", "loops", "optimizer_states", "distill_dynamics"} <= content.keys():
            raise UserError(f"{path}: no checkpoint of fit")
    except UserError as error:
        if is_first_rank():
            print(f"left out {error}", file=sys.stderr)
        return None
    return content["epoch"], content["global_step"]


def last_checkpoint(trainer: Trainer) -> Path | None:
    """Where `fit` keeps its newest checkpoint, written or not; None for a Trainer made without one."""
    for callback in trainer.checkpoint_callbacks:
        if (
            isinstance(callback, ModelCheckpoint)
            and callback.filename == Path(LAST).stem
            and callback.dirpath
        ):
            return Path(callback.dirpath) / LAST
    return None


def best_checkpoint(trainer: Trainer) -> ModelCheckpoint | None:
    """The callback that keeps the checkpoint of the best student, None if nothing was validated yet."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.monitor in BEST_BY and callback.best_model_path:
            return callback
    return None


def read_best(best: ModelCheckpoint) -> tuple[int, float]:
    """After how many epochs the best checkpoint was written, and its score.

    As the file has it: the callback remembers another, where the run was killed before the next `last.ckpt`.
    """
    saved = torch.load(best.best_model_path, map_location="cpu", weights_only=True)
    return saved["epoch"] + 1, saved["callbacks"][best.state_key]["best_model_score"].item()


def begin_from(trainer: Trainer) -> None:
    """Make the checkpoint that a run goes on from its `last.ckpt`, where it is an older one or another's.

    What is in `last.ckpt` and `preempted.ckpt` is given up then. If they stayed, the next start after a kill
    would go on from them, and the record lacks their epochs by now.
    """
    given, last = trainer.ckpt_path, last_checkpoint(trainer)
    if given is None or last is None:
        return
    preempted = last.with_name(PREEMPTED)
    if Path(given).resolve() not in (last.resolve(), preempted.resolve()):
        with atomic_write(last) as partial:
            shutil.copyfile(given, partial)
        preempted.unlink(missing_ok=True)


def best_by(data: Any) -> str | None:
    """The metric that the best student is chosen by; None where validation measures none."""
    if getattr(data, "labels", True):
        return OF_CLASSES[0].metric
    return OF_FEATURES[0].metric if data.has_val else None


def exported_checkpoint(trainer: Trainer) -> tuple[Path, int, float | None] | None:
    """The file whose student is exported, after how many epochs it was written, and its score.

    The best one's; the last one's where nothing was validated; None where there is none.
    """
    if (best := best_checkpoint(trainer)) is not None:
        return Path(best.best_model_path), *read_best(best)
    last = last_checkpoint(trainer)
    if last is None or not last.is_file():
        return None
    return last, torch.load(last, map_location="cpu", weights_only=True, mmap=True)["epoch"] + 1, None


def checkpoint_callbacks(
    run_dir: Path, every_n_epochs: int, best: str | None = OF_CLASSES[0].metric
) -> list[ModelCheckpoint]:
    """The best by a metric first, the last last: each holds what those before it have made of the epoch."""
    kept = partial(
        ModelCheckpoint,
        dirpath=run_dir / "checkpoints",
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )
    return [
        *([kept(filename="best", monitor=best, mode="max")] if best else []),
        kept(
            filename="epoch_{epoch:04.0f}",
            auto_insert_metric_name=False,
            save_top_k=-1,
            every_n_epochs=every_n_epochs,
        ),
        # Lightning tells callbacks apart by their settings: the mode, unused here, makes this one another
        # than the one before, where that is to keep every epoch.
        kept(filename="last", mode="max", every_n_epochs=1),
    ]
