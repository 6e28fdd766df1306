"""What a run writes about itself: run.json at its start and end, the best student at its end."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from distill_dynamics.callbacks.console import doubt_of
from distill_dynamics.errors import UserError, first_line
from distill_dynamics.files import atomic_write_folder
from distill_dynamics.models.backbone import Backbone
from distill_dynamics.models.cost import cost
from distill_dynamics.models.input_size import teacher_side
from distill_dynamics.models.teacher import Teacher
from distill_dynamics.runs import lease
from distill_dynamics.runs.card import model_card
from distill_dynamics.runs.directory import has_ended, record, record_end
from distill_dynamics.runs.scores import OF_CLASSES, OF_FEATURES
from distill_dynamics.signals import Preempted
from distill_dynamics.text import counted
from distill_dynamics.train.checkpoints import BEST_BY, LAST, begin_from, exported_checkpoint
from distill_dynamics.train.distiller import Distiller
from distill_dynamics.train.metrics import datamodule
from distill_dynamics.train.quality import quality_facts, validates_all
from distill_dynamics.train.run_logger import RunLogger, log_row
from distill_dynamics.train.wandb_rows import wandb_loggers_of

BEST_STUDENT = "student"
"""Folder of the best student in a run's directory, in timm's hub layout."""

_UNTIL_0_1 = "student_best.safetensors"
"""What version 0.1.0 wrote into checkpoints/ in its place."""


class RunRecord(Callback):
    """Writes `run.json` when training starts and ends, and the best student into `student/`."""

    def __init__(self) -> None:
        self._started = False  # an error before that is none of the start that run.json has last
        self._position: tuple[int, int] | None = None
        self.stepped = False  # a step of training was begun

    def on_train_start(self, trainer: Trainer, pl_module: Distiller) -> None:
        """Record the start; a continued run's metrics go on after the epoch that is continued."""
        if trainer.is_global_zero:
            begin_from(trainer)  # before the record gives up the epochs after that
        for logger in trainer.loggers:
            if isinstance(logger, RunLogger):
                logger.continue_from(trainer.current_epoch)
                # The record that W&B begins now has a summary of its own.
                log_row(wandb_loggers_of(trainer), 0, logger.known_once(), trainer.global_step)
        if trainer.fit_loop.restarted_mid_epoch:  # of which Lightning calls no start
            self.on_train_epoch_start(trainer, pl_module)
        self._started = True
        if trainer.is_global_zero:
            data = datamodule(trainer)
            dataset: Any = getattr(data.val_dataloader(), "dataset", ())  # nothing without such images
            whole = validates_all(trainer) or not dataset
            record(
                Path(trainer.default_root_dir),
                trainer.current_epoch,
                seed=int(os.environ.get("PL_GLOBAL_SEED", 0)),
                data={
                    "name": type(data).__name__,
                    "fingerprint": data.fingerprint(),
                    "classes": data.num_classes,
                    "val_images": len(dataset) if whole else None,
                    **quality_facts(data, whole),
                },
                **_teachers(pl_module, data),
                student_cost=cost(pl_module.student, data.image_size),
                threads=torch.get_num_threads(),  # that costs were measured with
                **_gates(pl_module),
                devices=f"{trainer.world_size} x {pl_module.device.type}",
                images_a_step=pl_module.global_batch,
                **({"floors": pl_module.loss_floors} if pl_module.loss_floors else {}),
            )

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        """Stop where another process has the run by now, or where its directory is gone."""
        self.stepped = True
        lease.check_now_and_then()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Distiller) -> None:
        """Tell the loggers to which epoch belongs what others log."""
        for logger in trainer.loggers:
            if hasattr(logger, "begin_epoch"):
                logger.begin_epoch(trainer.current_epoch + 1)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: Distiller, checkpoint: dict[str, Any]) -> None:
        """Let callbacks take up what holds here: files that are there, with their own numbers, and settings.

        A run that was moved keeps its best, which Lightning would forget with the old path. One that begins
        from another's checkpoint has none yet.
        """
        self._position = checkpoint["epoch"], checkpoint["global_step"]
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        for callback in callbacks:
            state = checkpoint["callbacks"].get(callback.state_key)
            if state and isinstance(callback, ModelCheckpoint):
                _relocate_files(callback, state, checkpoint["epoch"])
            if state and isinstance(callback, EarlyStopping):
                state["patience"] = callback.patience  # Lightning would keep that of the checkpoint

    def on_fit_start(self, trainer: Trainer, pl_module: Distiller) -> None:
        """Refuse ranks that go on from different checkpoints, as where they see different folders."""
        first = trainer.strategy.broadcast(self._position)
        if not trainer.strategy.reduce_boolean_decision(first == self._position):
            raise UserError(
                f"the first process goes on from {_position_text(first)}, another from another checkpoint: "
                "all need to see the same run directory"
            )

    def on_fit_end(self, trainer: Trainer, pl_module: Distiller) -> None:
        """Record that the run came to its end, and take the student out of `exported_checkpoint`."""
        if not self._started:
            _keep_best(trainer)
        if not trainer.is_global_zero:
            return
        run_dir = Path(trainer.default_root_dir)
        if not self._started:
            print(
                f"nothing was left to train: {run_dir} has {counted(trainer.current_epoch, 'epoch')}, and "
                f"trainer.max_epochs is {trainer.max_epochs}",
                file=sys.stderr,
            )
        try:
            self._export(trainer, run_dir)
        except lease.Lost:
            raise
        except Exception as error:
            # What was trained is in the checkpoints: the run has come to its end all the same.
            file = "best.ckpt" if (run_dir / "checkpoints" / "best.ckpt").is_file() else LAST
            print(
                f"the student was not exported: {first_line(error)}; checkpoints/{file} has it",
                file=sys.stderr,
            )
        if self._started or not has_ended(run_dir):  # a start that was killed after its last epoch has, now
            record_end(run_dir, trainer.current_epoch)

    def _export(self, trainer: Trainer, run_dir: Path) -> None:
        found = exported_checkpoint(trainer)
        if found is None:
            return
        path, epoch, score = found
        student = Backbone(checkpoint=path)
        names = getattr(datamodule(trainer), "class_names", None)
        with atomic_write_folder(run_dir / BEST_STUDENT) as folder:
            chosen_by = (OF_CLASSES if student.num_classes else OF_FEATURES)[0].name
            student.export_folder(folder, names, notes={"epoch": epoch, f"val_{chosen_by}": score})
            (folder / "README.md").write_text(model_card(run_dir, student, epoch, score), encoding="utf-8")
        # It may be of an earlier epoch, in a run that was begun by that version.
        (run_dir / "checkpoints" / _UNTIL_0_1).unlink(missing_ok=True)

    def on_exception(self, trainer: Trainer, pl_module: Distiller, exception: BaseException) -> None:
        """Record on which error it stopped; Ctrl-C is one, a preemption none. A recorded end stays."""
        if self._started and trainer.is_global_zero:
            run_dir, preempted = Path(trainer.default_root_dir), isinstance(exception, Preempted)
            # It would take the place of the error that is recorded: a full disk is both, a lost run too.
            with suppress(OSError, lease.Lost):
                if not has_ended(run_dir):
                    record_end(run_dir, trainer.current_epoch, None if preempted else exception, preempted)


def _keep_best(trainer: Trainer) -> None:
    """Where nothing was left to train, best.ckpt is the best, though `last.ckpt` may be older than it."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.monitor in BEST_BY and callback.dirpath:
            path = Path(callback.dirpath) / "best.ckpt"
            if not callback.best_model_path and path.is_file():
                callback.best_model_path = str(path)


def _relocate_files(callback: ModelCheckpoint, state: dict[str, Any], epoch: int) -> None:
    """Change what a checkpoint of the epoch with this number, from 0, says of a callback's files.

    A file with a number counts with the number that it holds itself. One that was written after that epoch is
    of a training that is given up: it is overwritten by the next.
    """
    old, folder = state.get("dirpath") or "", str(callback.dirpath)
    state["dirpath"] = callback.dirpath
    for name in ("best_model_path", "kth_best_model_path", "last_model_path"):
        path = (state.get(name) or "").replace(old, folder)
        state[name] = path if Path(path).is_file() else ""
    found = state["best_model_path"]
    score = None
    if found and callback.monitor:
        try:
            saved = torch.load(found, map_location="cpu", weights_only=True, mmap=True)
            score = (
                saved["callbacks"][callback.state_key]["best_model_score"]
                if saved["epoch"] <= epoch
                else None
            )
        except Exception as error:  # what a damaged file raises depends on where it is damaged
            print(f"{found} cannot be read, and counts no longer: {first_line(error)}", file=sys.stderr)
        if score is None:
            state["best_model_path"] = ""
    known = {state["best_model_path"]: score} if score is not None else {}
    others = {k.replace(old, folder): v for k, v in (state.get("best_k_models") or {}).items()}
    state["best_k_models"] = {k: v for k, v in others.items() if Path(k).is_file()}
    if callback.save_top_k == 1 or not known:
        state |= {
            "best_model_score": score,
            "best_k_models": known,
            "kth_best_model_path": state["best_model_path"] if known else "",
            "kth_value": callback.kth_value if score is None else score,
        }


def _teachers(distiller: Distiller, data: Any) -> dict[str, Any]:
    """Who teaches, how well, at what cost, and what is to be doubted: the first, and all with names."""
    facts: dict[str, Any] = {"teacher": None, "teacher_cost": None}
    named = {}
    for name, teacher in distiller.teachers.items():
        backbone = teacher.backbone
        about, costs = _teacher(teacher, distiller.trainer), cost(backbone, teacher_side(backbone, data))
        if teacher is distiller.teacher:
            facts = {"teacher": about, "teacher_cost": costs}
        if name:
            named[name] = about | {"role": teacher.role, "cost": costs}
    return facts | ({"teachers": named} if named else {})


def _teacher(teacher: Teacher, trainer: Trainer) -> dict[str, Any]:
    backbone = teacher.backbone
    return {
        "name": backbone.name,
        "weights": backbone.source,
        "mean": list(backbone.mean),
        "std": list(backbone.std),
        "acc1": teacher.accuracy.get("acc1"),
        **{name: value for name, value in teacher.accuracy.items() if not name.startswith("acc")},
        "stated_acc1": backbone.stated_accuracy,
        "doubt": doubt_of(teacher, trainer),
    }


def _gates(distiller: Distiller) -> dict[str, Any]:
    """By term with a gate, [student block, teacher block, gate] of each pair."""
    terms: Any = distiller.terms
    gates = {
        name: [[*pair, gate] for pair, gate in zip(term.pairs, term.gates.tolist(), strict=True)]
        for name, term in terms.items()
        if term.gate is not None
    }
    return {"gates": gates} if gates else {}


def _position_text(position: tuple[int, int] | None) -> str:
    return "the start" if position is None else f"epoch {position[0] + 1}, step {position[1]}"
