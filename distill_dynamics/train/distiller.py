"""The watched training step: two forwards, a dict of named loss terms, their sum, the optimiser.

Legend of letters: B batch, C channels, H W grid, K classes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from distill_dynamics.callbacks.epoch_rows import EpochRows
from distill_dynamics.callbacks.finite import FiniteLoss
from distill_dynamics.callbacks.validate_at_end import ValidateAtEnd
from distill_dynamics.errors import UserError
from distill_dynamics.models.backbone import Backbone
from distill_dynamics.models.compiled import check_compiler, compile_blocks
from distill_dynamics.models.features import read
from distill_dynamics.models.teacher import Precision, Teacher, of_teachers
from distill_dynamics.schedule import ProgressCosine, Schedule
from distill_dynamics.teacher_cache.identity import validated_on
from distill_dynamics.teacher_cache.teacher import CachedTeacher
from distill_dynamics.train.budget import scale
from distill_dynamics.train.checks import check_arguments, check_data, check_length, freeze
from distill_dynamics.train.dry_run import dry_run
from distill_dynamics.train.fit_gates import fit_gates
from distill_dynamics.train.fit_losses import fit_losses
from distill_dynamics.train.loss_floors import loss_floors
from distill_dynamics.train.metrics import datamodule
from distill_dynamics.train.optimised_student import OptimisedStudent
from distill_dynamics.train.prepare_teachers import (
    measure_teachers,
    measure_untrained,
    prepare_teachers,
    terms_to_fit,
)
from distill_dynamics.train.progress import progress_at
from distill_dynamics.train.reference_images import drawn_once
from distill_dynamics.train.run_facts import facts_to_save, take_facts
from distill_dynamics.train.run_logger import log_row
from distill_dynamics.train.settings import saved_settings
from distill_dynamics.train.standard_terms import with_standard
from distill_dynamics.train.step import Step, keyed_draws
from distill_dynamics.train.teachers import TeacherSettings, check_all_read, make_teachers, one_teacher
from distill_dynamics.train.terms import BoundTerm, Term, TermValue, of_student, of_teacher


class Distiller(OptimisedStudent):
    """Trains a student from a teacher; with no teacher it is plain supervised training.

    The loss is Σ β·(a term's mean over its pairs); every term is logged by name and unweighted. α writes two
    of them, `ce` with the weight 1 - α and `kd`, SoftKD, with α. The teacher is frozen, in eval mode for
    good, and no submodule: it is in no checkpoint, no optimiser and no gradient reduction.

    Args:
        student: the model that is trained. One without weights takes the data's normalisation.
        teacher: the model it learns from. One whose architecture fixes another image size is shown the
            student's view resized to it, and grey images in three channels where it takes so many.
        teachers: others, or several, by name; a term says which one it reads (`Term.teacher`).
        terms: of the loss, by name; `train/loss_<name>` is the unweighted value. `ce` or `kd` here takes the
            place of the one that α writes, and null removes it.
        alpha: share of the teacher's logits in the loss: 0.9 with a `teacher` and classes, else 0.
        temperature: T of `kd`, a number or a schedule.
        label_smoothing: of `ce`.
        optimizer: makes the optimiser from parameter groups. Its weight decay spares biases, norms,
            and what the student's architecture names (position and class tokens). AdamW's `fused: true`
            updates all weights in one call, several times faster; what is computed is the same.
        scheduler: makes the schedule. The default, `ProgressCosine`, is set at every step and fits a training
            of any length; all others take one step an epoch. A ReduceLROnPlateau is Lightning's, which has a
            monitor. null is a constant rate.
        lr_images: the linear rule: the optimiser's rate is for this many images a step, and is
            scaled to the global batch (batch × devices × accumulated batches); null takes it as it is.
        compile: compile student and teacher block by block; the first steps are slow. Probes stay
            uncompiled and checkpoints keep their names. With dropout the numbers drawn are others
            than without, though still a function of (seed, step, rank). Untested on GPU.
        teacher_precision: what the teacher computes in, as Lightning names it: "32-true", "16-mixed" or
            "bf16-mixed"; null is the trainer's precision. Its weights stay float32. Untested on GPU.
        channels_last: store images and convolutions' weights with the channels last, which tensor cores
            prefer; what is computed is the same. Untested on GPU.
        teacher_cache: folder in which `cache-teacher` has stored the teacher's answers to the data's fixed
            views; null runs the teacher. Blocks that are cheap to run are run all the same.
        shard_teacher: for a teacher that does not fit beside the student: under `trainer.strategy: ddp` each
            of n devices keeps 1/n of it, and gathers a block when the block runs; what is computed is the
            same. In main memory every process builds it whole (`sharding.py`). Untested on GPU.
        freeze_backbone: train the student's head alone, on features that stay what its weights make of the
            images, in eval mode: linear probing. Terms can then read the student's logits alone.

    Raises:
        UserError: terms that read a teacher, or α, without one, blocks that do not exist, and, when training
            starts, data that do not fit the models.
    """

    terms: Any
    """A ModuleDict of `BoundTerm`s, by name."""

    def __init__(
        self,
        student: Backbone,
        teacher: Backbone | None = None,
        terms: dict[str, Term | None] | None = None,
        alpha: float | None = None,
        temperature: float | Schedule = 1.0,
        label_smoothing: float = 0.1,
        optimizer: Callable[[Iterable], Optimizer] = lambda params: torch.optim.AdamW(
            params, lr=1e-3, weight_decay=0.05, fused=True
        ),
        scheduler: Callable[[Optimizer], LRScheduler] | None = lambda optimizer: ProgressCosine(optimizer),
        lr_images: int | None = None,
        compile: bool = False,
        teacher_precision: Precision | None = None,
        channels_last: bool = False,
        shard_teacher: bool = False,
        teacher_cache: str | None = None,
        freeze_backbone: bool = False,
        teachers: dict[str, TeacherSettings] | None = None,
    ) -> None:
        alpha = alpha if alpha is not None else (0.9 if teacher and student.num_classes else 0.0)
        check_arguments(alpha, temperature, label_smoothing, lr_images)
        own = teacher_precision, teacher_cache, shard_teacher
        known = make_teachers(one_teacher(teacher, *own), teachers or {}, channels_last)
        super().__init__(student, known, channels_last)
        self.make_optimizer, self.make_scheduler, self.lr_images = optimizer, scheduler, lr_images
        self.answering: dict[str, Teacher | CachedTeacher] = {**known}  # what is asked in training, by name
        backbones = {name: of.backbone for name, of in known.items()}
        for model in dict.fromkeys([student, *backbones.values()]):
            if channels_last:
                model.to(memory_format=torch.channels_last)
            if compile:
                compile_blocks(model)
        self._compiled = compile
        given = with_standard(terms or {}, alpha, temperature, label_smoothing, student, backbones)
        made = {name: BoundTerm(name, term, student, backbones) for name, term in given.items()}
        self.terms = nn.ModuleDict(made)
        if not self.terms:
            raise UserError("model.terms: no term is left, so there is nothing to train by")
        if freeze_backbone:
            freeze(student, self.terms)
        bound: list[Any] = [*self.terms.values()]
        self.student_reads, self.wanted = of_student(bound), of_teacher(bound)
        check_all_read(known, self.wanted)
        if compile and any(word == "attention" for word, *_ in [*self.student_reads, *self.teacher_reads()]):
            raise UserError("model.compile: a compiled model does not show its attention, which a term reads")
        self.latest: Step  # once there was one
        self.validated_on: dict[str, Any] = {}
        """What of a DataModule of ours its validation images are, once training is set up."""
        self.untrained: dict[str, float] = {}
        """How good its features are before training, where they are measured."""

    def teacher_reads(self, name: str | None = None) -> set[tuple[str, int | None]]:
        """What the terms read of the teacher of a name, or of all, words and blocks."""
        return {(w.word, w.block) for w in self.wanted if name in (None, w.teacher)}

    def terms_of(self, name: str) -> dict[str, Any]:
        """The terms of the teacher of a name; those that read none go with the first."""
        first = next(iter(self.teachers), "")
        terms: Any = self.terms.items()
        return {n: term for n, term in terms if (first if term.teacher is None else term.teacher) == name}

    def configure_callbacks(self) -> list[Callback]:
        """What belongs to every training: validation at an epoch's end, its row, the watch for NaN."""
        return [ValidateAtEnd(), EpochRows(), FiniteLoss()]

    # --- the step ---------------------------------------------------------------------------------

    def losses(
        self,
        images: Tensor,
        batch: Mapping[str, Any],
        stored: Mapping[str, Tensor] | None = None,
        draws: AbstractContextManager | None = None,
    ) -> dict[str, TermValue]:
        """Every term of the loss by name, unweighted: one forward pass of each model.

        `batch` has "targets" [B], "progress" and, where a term reads it, "index" [B]; `stored` a batch's rows
        of the teacher's cache. The student's pass and the losses run under `draws`.
        """
        taught = of_teachers(self.answering, images, self.wanted, stored)
        with draws or nullcontext():
            learnt = read(self.student, self.for_student(images), self.student_reads)
            return {name: term(learnt, taught, batch) for name, term in self.terms.items()}

    def weights_at(self, progress: float) -> dict[str, float]:
        """β of every term, by which its `gated` value is multiplied."""
        terms: Any = self.terms
        return {name: scale(term, self) * term.weight_at(progress) for name, term in terms.items()}

    def training_step(self, batch: tuple[Any, ...], batch_idx: int) -> Tensor:
        """The weighted total of the terms."""
        images, targets, *known = batch
        progress = progress_at(self.trainer, batch_idx)
        stored = known[0] if known else {}
        facts = {"targets": targets, "progress": progress, "index": stored.get("index")}
        parts = self.losses(images, facts, stored, self._draws(batch_idx))
        weights = self.weights_at(progress)
        total = torch.stack([weights[name] * part.gated for name, part in parts.items()]).sum()
        with torch.no_grad():
            values = torch.stack([total, *(part.mean for part in parts.values())])
        terms: Any = self.terms
        untold = {n: weights[n] * t.mean_gate for n, t in terms.items() if not t.weight_is_told}
        # Not self.log, for which Lightning asks a GPU for the number at every step.
        self.latest = Step([*parts], values, untold, len(images), batch_idx)
        return total

    def _draws(self, batch_idx: int) -> AbstractContextManager:
        return keyed_draws(self.device, self._seed, self.current_epoch, batch_idx, self.global_rank)

    def reads_of_batch(self) -> set[str]:
        """What the terms read beside the models."""
        terms: Any = self.terms.values()
        return {i.word for term in terms for i in term.inputs[0] if i.who == "batch"}

    # --- before training --------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Check that the data fit the models, and prepare the change of size and normalisation."""
        if stage == "fit":
            check_length(self.trainer)
        data = datamodule(self.trainer)
        check_data(self, data, stage)
        if self._compiled:
            check_compiler(self.trainer.strategy.root_device)
        self._seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        if stage == "fit" and "index" in self.reads_of_batch():
            data.indexed = True
        if stage == "fit" and hasattr(data, "views_depend_on"):
            self.validated_on = validated_on(data)
        dry_run(self, data, stage, self.trainer.strategy)
        self.take_images_of(data)
        prepare_teachers(self, data, stage)

    def on_fit_start(self) -> None:
        """Measure what is there before training, and let losses fit what they fit, at a run's first start."""
        begins, reference = self.saved_settings is None, drawn_once(datamodule(self.trainer))
        if begins:
            fit_losses(self, reference, terms_to_fit(self))
            fit_gates(self, reference)
        for term in self.terms.values():
            term.begin()
        self.loss_floors = loss_floors(self, reference) if begins else {}
        self.untrained = measure_untrained(self)
        of_student = {f"val/{name}": value for name, value in self.untrained.items()}
        self._measured = of_student | measure_teachers(self)

    def on_train_start(self) -> None:
        """Write down what was measured before the first step."""
        self.optimisation.resume()
        if (rates := self.optimisation.rates()) and rates.warning:
            rank_zero_warn(rates.warning)
        if self._measured:
            log_row(self.trainer.loggers, self.current_epoch, self._measured, self.trainer.global_step)

    # --- checkpoints ------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what builds the student again, and the teachers' accuracy. UserError for NaN."""
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, FiniteLoss):  # Lightning asks no callback where only weights are saved
                callback.check(self.trainer, self)
        checkpoint.setdefault("distill_dynamics", {}).update(facts_to_save(self))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take from the checkpoint what `fit` measured at its beginning."""
        take_facts(self, checkpoint)
        if self.trainer.state.fn == "fit":
            self.saved_settings = saved_settings(checkpoint)
