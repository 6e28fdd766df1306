"""The watched training step: two forwards, a dict of named loss terms, their sum, the optimiser.

Legend of letters: B batch, C channels, H W grid, K classes.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, NoReturn, get_args

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy
from tqdm import tqdm

from distill_dynamics.data.images import IGNORED
from distill_dynamics.data.keyed import mixed
from distill_dynamics.errors import UserError
from distill_dynamics.losses import SoftKD
from distill_dynamics.losses.logits import TopClasses, soft_kd_top
from distill_dynamics.losses.maps import at_least_float32
from distill_dynamics.models.backbone import Backbone, Evaluation, Features
from distill_dynamics.models.isolated import isolated
from distill_dynamics.models.layers import pair_layers
from distill_dynamics.models.sharding import is_sharded, shard
from distill_dynamics.schedule import ProgressCosine
from distill_dynamics.teacher_cache.cache import (
    TeacherCache,
    field_of,
    identity,
    teacher_part,
    validated_on,
)
from distill_dynamics.train.checkpoints import last_checkpoint
from distill_dynamics.train.checks import (
    check_name_of_term,
    check_number,
    check_weights,
    checked,
    dry_run,
)
from distill_dynamics.train.optimise import Optimisation, decay_groups
from distill_dynamics.train.run_logger import log_row
from distill_dynamics.train.settings import saved_settings

Precision = Literal["32-true", "16-mixed", "bf16-mixed"]

_NEVER = torch.iinfo(torch.int64).max
"""The step in which nothing happened that has not happened."""


class Taught(NamedTuple):
    """What the teacher says of a batch."""

    logits: Tensor | TopClasses | None
    """[B, K], or the likeliest classes of an answer that was stored."""
    maps: dict[tuple[str, int], Tensor]
    """For each term and place among its pairs the teacher's map, or what the loss sees of it."""


@dataclass
class Term:
    """One feature loss: what is compared, between which blocks, and how much it weighs.

    Args:
        loss: makes the loss of one pair from (student_channels, teacher_channels). In YAML:
            `{class_path: distill_dynamics.losses.SpectralKD}`, or any class of yours that takes
            these two first and is called with (student_map, teacher_map), each [B, C, H, W].
        weight: β; multiplies the mean of the loss over the term's pairs.
        first: align the first so many student blocks with the teacher's of the same number.
        last: align the last so many with the teacher's of the same rank from the end.
        pairs: or these [student block, teacher block] pairs, numbered from 1, negative from the end; or
            "all", for models equally deep.
    """

    loss: Callable[[int, int], nn.Module]
    weight: float = 0.2
    first: int = 0
    last: int = 0
    pairs: list[tuple[int, int]] | Literal["all"] | None = None


class Distiller(LightningModule):
    """Trains a student from a teacher; with no teacher it is plain supervised training.

    The loss is (1 - α)·CE + α·SoftKD + Σ β·(mean of a term over its pairs); every part is logged
    by name and unweighted. The teacher is frozen, in eval mode for good, and no submodule: it is in
    no checkpoint, no optimiser and no gradient reduction.

    Args:
        student: the model that is trained. One without weights takes the data's normalisation.
        teacher: the model it learns from.
        terms: feature losses by name; `train/loss_<name>` is the unweighted value.
        alpha: share of the teacher's logits in the loss: 0.9 with a teacher, 0 without, unless given.
        temperature: T of SoftKD.
        label_smoothing: of the cross-entropy.
        optimizer: makes the optimiser from parameter groups. Its weight decay spares biases, norms,
            and what the student's architecture names (position and class tokens). AdamW's `fused: true`
            updates all weights in one call, several times faster; what is computed is the same.
        scheduler: makes the schedule. The default, `ProgressCosine`, is set at every step and fits a training
            of any length; all others take one step an epoch. A ReduceLROnPlateau is Lightning's, which has a
            monitor. null is a constant rate.
        lr_images: the linear rule: the optimiser's rate is for this many images a step, and is
            scaled to the global batch (batch × devices × accumulated batches); null takes it as it is.
        compile: compile student and teacher (`torch.compile`'s defaults); the first steps are slow. Probes
            stay uncompiled and checkpoints keep their names. With dropout the numbers drawn are others
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

    Raises:
        UserError: terms or α without a teacher, blocks that do not exist, and, when training starts,
            data that do not fit the models.
    """

    student: Backbone
    teacher: Backbone | None

    def __init__(
        self,
        student: Backbone,
        teacher: Backbone | None = None,
        terms: dict[str, Term] | None = None,
        alpha: float | None = None,
        temperature: float = 1.0,
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
    ) -> None:
        super().__init__()
        terms = terms or {}
        if teacher is None and (terms or alpha):
            raise UserError(
                "model: without a teacher there can be no terms and alpha must be 0 (or left out)"
            )
        if (shard_teacher or teacher_cache or teacher_precision) and teacher is None:
            raise UserError(
                "model: without a teacher shard_teacher, teacher_cache and teacher_precision have no meaning"
            )
        if teacher_precision not in (None, *get_args(Precision)):
            raise UserError(
                f"model.teacher_precision is {' or '.join(get_args(Precision))}, not {teacher_precision!r}"
            )
        if shard_teacher and channels_last:
            raise UserError(
                "model: a teacher cannot be sharded with its channels last; choose one of the two"
            )
        self.alpha = alpha if alpha is not None else (0.9 if teacher else 0.0)
        if not 0 <= self.alpha <= 1:
            raise UserError(f"model.alpha is a share, between 0 and 1, not {self.alpha}")
        check_number("temperature", temperature, above=True)
        check_number("label_smoothing", label_smoothing, most=1)
        if lr_images is not None:
            check_number("lr_images", lr_images, least=1)
        for name, term in terms.items():
            check_name_of_term(name)
            check_number(f"terms.{name}.weight", term.weight)
        self.student = student
        # Kept out of the module tree: nothing that walks it (state_dict, train(), DDP, an EMA copy) meets it.
        object.__setattr__(self, "teacher", teacher.requires_grad_(False).eval() if teacher else None)
        self.shard_teacher = shard_teacher
        self.teacher_precision = teacher_precision
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        for model in (student, teacher):
            if model is not None and channels_last:
                model.to(memory_format=torch.channels_last)
            if model is not None and compile:
                model.compile()  # not torch.compile(model), which renames the keys of checkpoints
        self.label_smoothing = label_smoothing
        self.soft_kd = SoftKD(temperature)
        self.make_optimizer, self.make_scheduler, self.lr_images = optimizer, scheduler, lr_images

        self.pairs: dict[str, list[tuple[int, int]]] = {}
        self.terms = nn.ModuleDict()
        self.weights = {"ce": 1 - self.alpha, "kd": self.alpha}
        for name, term in terms.items():
            assert teacher is not None  # or the terms were refused above
            pairs = _pairs(name, term, student, teacher)
            self.pairs[name] = pairs
            self.weights[name] = term.weight
            self.terms[name] = nn.ModuleList(
                checked(f"terms.{name}.loss", lambda widths: term.loss(*widths), widths)  # noqa: B023 (called here)
                for widths in [(student.channels[s - 1], teacher.channels[t - 1]) for s, t in pairs]
            )
        everything = [pair for pairs in self.pairs.values() for pair in pairs]
        self.student_layers = sorted({s for s, _ in everything})
        self.teacher_layers = sorted({t for _, t in everything})
        self.teacher_cache = teacher_cache
        self.cache: TeacherCache | None = None  # read when training is set up: nothing else needs it

        self.val_metrics, self.teacher_metrics = (accuracies(student.num_classes) for _ in range(2))
        self.val_loss = MeanMetric()
        self.teacher_accuracy: dict[str, float] = {}
        self.latest_loss: Tensor | None = None
        self._epoch_sum: Tensor | None = None
        self._epoch_steps = self._epoch_images = 0
        self._epoch_seconds = 0.0  # of training, as far as the clock has been read
        self._clock = 0.0  # when it was started or read
        self._validated_at: int | None = None  # the step with whose weights val/* was measured
        self._val_check_batch: Any = None  # Lightning's, between two epochs
        self._begun: dict[str, Any] | None = None  # what a checkpoint says of the epoch it was saved in
        self._first_bad: Tensor | None = None
        self._saved_settings: dict[str, Any] | None = None  # of the checkpoint that training goes on from

    # --- the step ---------------------------------------------------------------------------------

    def forward(self, images: Tensor) -> Tensor:
        """Student logits [B, K] for a batch as the DataModule gives it, [B, C, H, W]."""
        return self.student(self.for_student(images)).logits

    def student_features(self, images: Tensor) -> Features:
        """What `losses` needs of the student, for a batch as the DataModule gives it."""
        return self.student(self.for_student(images), self.student_layers)

    def teacher_features(self, images: Tensor, row: dict[str, Tensor] | None = None) -> Taught | None:
        """What `losses` needs of the teacher, without gradients; None where there is no teacher.

        With a batch's `row` from the cache only what that does not hold is computed.
        """
        if self.teacher is None:
            return None
        layers, head = (self.teacher_layers, self.alpha > 0) if row is None else (self._uncached, False)
        found = Features(None, [])
        if layers or head:
            found = self.ask_teacher(images, layers, head)
        at = dict(zip(layers, found.maps, strict=True))
        pairs = [(name, i, t) for name, pairs in self.pairs.items() for i, (_, t) in enumerate(pairs)]
        if row is None:
            return Taught(found.logits, {(name, i): at[t] for name, i, t in pairs})
        assert self.cache is not None
        maps = {
            (name, i): self.cache.part(row, self._cached[name, i]) if (name, i) in self._cached else at[t]
            for name, i, t in pairs
        }
        return Taught(self.cache.top(row, self.soft_kd.temperature) if self.alpha > 0 else None, maps)

    def ask_teacher(self, images: Tensor, layers: Sequence[int], head: bool) -> Features:
        """The teacher's answer to a batch as the DataModule gives it: no gradients, its own precision."""
        assert self.teacher is not None
        own: AbstractContextManager = nullcontext()
        if self.teacher_precision is not None:
            half = {"32-true": None, "16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}[
                self.teacher_precision
            ]
            own = torch.autocast(self.device.type, half, enabled=half is not None)
        with torch.no_grad(), own:
            return self.teacher(self.for_teacher(images), layers, logits=head)

    def losses(self, student: Features, teacher: Taught | None, targets: Tensor) -> dict[str, Tensor]:
        """Every part of the loss by name, unweighted; the order is that of `self.weights`."""
        assert student.logits is not None
        logits = at_least_float32(student.logits)
        parts = {"ce": F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)}
        if teacher is None:
            return parts
        if isinstance(teacher.logits, TopClasses):
            parts["kd"] = soft_kd_top(student.logits, teacher.logits, self.soft_kd.temperature)
        elif teacher.logits is not None:
            parts["kd"] = self.soft_kd(student.logits, teacher.logits)
        student_map = dict(zip(self.student_layers, student.maps, strict=True))
        for name, pairs in self.pairs.items():
            losses: Any = self.terms[name]
            values = [
                loss(student_map[s], teacher.maps[name, i])
                for i, (loss, (s, _)) in enumerate(zip(losses, pairs, strict=True))
            ]
            parts[name] = sum(values) / len(values)
        return parts

    def training_step(self, batch: tuple[Any, ...], batch_idx: int) -> Tensor:
        """The weighted total; its parts are summed up for the epoch's means."""
        images, targets, *row = batch
        teacher = self.teacher_features(images, *row)
        with self._keyed_dropout(batch_idx):
            student = self.student_features(images)
        parts = self.losses(student, teacher, targets)
        total = torch.stack([self.weights[name] * part for name, part in parts.items()]).sum()
        self._part_names = list(parts)
        with torch.no_grad():
            values = torch.stack([total, *parts.values()])
            self._epoch_sum = values if self._epoch_sum is None else self._epoch_sum + values
            self._watch(values, batch_idx)
        self._epoch_steps += 1
        self._epoch_images += len(images)
        # Not self.log, for which Lightning asks a GPU for the number at every step.
        self.latest_loss = total.detach()
        return total

    def _watch(self, values: Tensor, batch_idx: int) -> None:
        """Note the first step in which each value was not finite, without waiting for a GPU to say so."""
        step = self.trainer.global_step + 1
        bad = torch.where(values.isfinite(), _NEVER, step)
        self._first_bad = bad if self._first_bad is None else torch.minimum(self._first_bad, bad)
        if self._looks_now(batch_idx):
            self._check_finite()

    def _looks_now(self, batch_idx: int) -> bool:
        """To look is to wait, for a GPU or ranks: every `log_every_n_steps`, before validation and probes."""
        trainer: Any = self.trainer
        due = trainer.is_last_batch or (batch_idx + 1) % trainer.log_every_n_steps == 0
        return due or (self.device.type == "cpu" and trainer.world_size == 1)

    def _check_finite(self) -> None:
        """Raise UserError, on every rank, if a part of the loss was not finite on any of them."""
        if self._first_bad is None:
            return
        steps = self.trainer.strategy.reduce(self._first_bad.clone(), reduce_op="min").tolist()
        if (step := min(steps)) < _NEVER:
            bad = [name for name, first in zip(self._part_names, steps[1:], strict=True) if first == step]
            self._diverged(f"the loss at step {step}", ", ".join(bad) or "the weighted sum of its parts")

    def _diverged(self, what: str, which: str) -> NoReturn:
        last = last_checkpoint(self.trainer)
        kept = (
            f"the last good checkpoint is {last}"
            if last and last.exists()
            else "no checkpoint was written yet"
        )
        raise UserError(
            f"{what} (epoch {self.current_epoch + 1}) is not finite: {which}. Nothing was saved since, "
            f"and {kept}. What may help: a lower learning rate or a longer warm-up, a smaller weight of the "
            "term, trainer.gradient_clip_val, precision bf16-mixed in the place of 16-mixed"
        )

    @contextmanager
    def _keyed_dropout(self, batch_idx: int) -> Iterator[None]:
        """Makes dropout a function of (seed, step, rank), so that a resumed run draws what it would have.

        The global state is put back. `torch.manual_seed`, which visits every device, would be slow.
        """
        seed = mixed(self._seed, self.current_epoch, batch_idx, self.global_rank)
        on_cuda = self.device.type == "cuda"
        with torch.random.fork_rng(devices=[self.device] if on_cuda else []):
            torch.default_generator.manual_seed(seed)
            if on_cuda:
                torch.cuda.manual_seed(seed)
            yield

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Top-1, top-5 and plain cross-entropy of the student; padding items count nowhere."""
        images, targets = batch
        logits = self(images)
        self.val_metrics.update(logits, targets)
        counted = (targets != IGNORED).sum()
        loss = F.cross_entropy(logits.float(), targets, ignore_index=IGNORED, reduction="sum")
        self.val_loss.update(loss / counted.clamp(min=1), weight=counted)
        if self.trainer.state.fn != "fit" and self._teacher_answers:
            self.teacher_metrics.update(self.ask_teacher(images, [], True).logits, targets)

    test_step = validation_step

    @property
    def _teacher_answers(self) -> bool:
        """Whether the teacher can be measured beside the student, when no training goes on."""
        same = self.teacher is not None and self.teacher.num_classes == self.student.num_classes
        return same and not self.shard_teacher

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> tuple[Tensor, Tensor]:
        """Class probabilities [B, K] and targets [B]."""
        images, targets = batch
        return self(images).softmax(dim=1), targets

    # --- epochs -----------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Measure the teacher on the validation set, before the first step; a continued run's is known."""
        self._measured_now = False
        if self.teacher is not None and self.alpha > 0 and not self.teacher_accuracy:
            cache, known = self.cache, None
            if cache is not None and cache.validated_on == validated_on(datamodule(self.trainer)):
                known = cache.accuracy
            self.teacher_accuracy = known or self._measure_teacher()
            self._measured_now = True

    def on_train_start(self) -> None:
        """Write the teacher's accuracy down; go on in a begun epoch."""
        self._first_bad = None
        self.optimisation.resume()
        if (rates := self.optimisation.rates()) and rates.warning:
            rank_zero_warn(rates.warning)
        if self._begun is not None:
            self._epoch_sum = self._begun["sums"][self.global_rank].to(self.device)
            self._epoch_steps, self._epoch_images = self._begun["steps"], self._begun["images"]
            self._epoch_seconds, self._clock = self._begun["seconds"], time.perf_counter()
            self._val_check_batch = self.trainer.val_check_batch
            self._begun = None
        if self._measured_now:
            row = {f"teacher/{name}": value for name, value in self.teacher_accuracy.items()}
            self._log_row(self.current_epoch, row)

    def on_train_epoch_start(self) -> None:
        """Set this epoch's learning rate, and begin its sums."""
        self.optimisation.begin_epoch()
        self._epoch_sum, self._epoch_steps, self._epoch_images = None, 0, 0
        self._epoch_seconds, self._clock = 0.0, time.perf_counter()
        if self._val_check_batch is not None:
            self.trainer.val_check_batch = self._val_check_batch
        self._val_check_batch = self.trainer.val_check_batch

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Set this step's learning rate, where the schedule has one for each."""
        self.optimisation.begin_step(batch_idx)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Have Lightning validate at the end of an epoch, whatever `val_check_interval` says.

        What a row, `best.ckpt` and the exported student say is measured on the weights of that end.
        """
        trainer: Any = self.trainer
        if trainer.is_last_batch:
            trainer.val_check_batch = 1
            trainer._last_val_time = -math.inf

    def lr_scheduler_step(self, scheduler: LRScheduler, metric: Any) -> None:
        """Leave the schedule alone: `Optimisation` steps it."""

    def on_validation_start(self) -> None:
        """Stop the clock of `train/images_per_s`: validation is not training."""
        self._read_clock()

    def on_validation_end(self) -> None:
        """Start it again."""
        self._clock = time.perf_counter()

    def _read_clock(self) -> None:
        now = time.perf_counter()
        self._epoch_seconds, self._clock = self._epoch_seconds + now - self._clock, now

    def on_validation_epoch_end(self) -> None:
        """Publish `val/*`; in `fit` the epoch's row is written by `on_train_epoch_end`."""
        self._publish("val")

    def on_test_epoch_end(self) -> None:
        """Publish `test/*`."""
        self._publish("test")

    def _publish(self, split: str) -> None:
        values = {**self.val_metrics.compute(), "loss": self.val_loss.compute()}
        self.val_metrics.reset()
        self.val_loss.reset()
        fitting = self.trainer.state.fn == "fit"
        if not fitting and self._teacher_answers:
            for name, value in self.teacher_metrics.compute().items():
                self.log(f"teacher/{name}", value)
            self.teacher_metrics.reset()
        for name, value in values.items():
            self.log(f"{split}/{name}", value, prog_bar=name == "acc1", logger=not fitting)
        self._validated_at = self.trainer.global_step

    def on_train_epoch_end(self) -> None:
        """Write the epoch's row: means of `train/*` over steps and ranks, and `val/*` where validated."""
        if self._epoch_sum is None:
            return  # no step was made
        means = self.trainer.strategy.reduce(self._epoch_sum / self._epoch_steps, reduce_op="mean").tolist()
        row = dict(
            zip(["train/loss", *(f"train/loss_{name}" for name in self._part_names)], means, strict=True)
        )
        validated = self._validated_at == self.trainer.global_step
        if not validated:
            self._read_clock()
        row["train/images_per_s"] = self._epoch_images * self.trainer.world_size / self._epoch_seconds
        row["train/lr"] = self.trainer.optimizers[0].param_groups[0]["lr"]
        metrics = {name: value.item() for name, value in self.trainer.callback_metrics.items()}
        if validated:
            row |= {name: value for name, value in metrics.items() if name.startswith("val/")}
        others = {name: value for name, value in metrics.items() if not name.startswith("val/")}
        self.optimisation.end_epoch(others | row)
        epoch = self.current_epoch + 1
        self._epoch_sum = None  # what is saved from here on is no longer of this epoch
        self._log_row(epoch, row)
        self.log("epoch", float(epoch), logger=False)  # names the checkpoint files

    def _log_row(self, epoch: int, metrics: dict[str, float]) -> None:
        """Write to every logger now: Lightning's own way comes after the checkpoint is saved."""
        log_row(self.trainer.loggers, epoch, metrics, self.trainer.global_step)

    def _measure_teacher(self) -> dict[str, float]:
        metrics = self.teacher_metrics.to(self.device)
        loader = datamodule(self.trainer).val_dataloader()
        plugin = self.trainer.precision_plugin
        with plugin.forward_context():
            shown = self.trainer.is_global_zero and self.trainer.progress_bar_callback is not None
            for batch in tqdm(loader, "Teacher", leave=False, disable=not shown):
                batch = self.transfer_batch_to_device(plugin.convert_input(batch), self.device, 0)
                metrics.update(self.ask_teacher(batch[0], [], True).logits, batch[1])
        return {name: value.item() for name, value in metrics.compute().items()}

    # --- what surrounds it ------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Check that the data fit the models, and prepare the change of normalisation."""
        if stage == "fit":
            self._check_length()
        data = datamodule(self.trainer)
        lacking = [
            a for a in ("mean", "std", "num_classes", "image_size", "batch_size") if not hasattr(data, a)
        ]
        if lacking:
            raise UserError(
                f"data: the DataModule has no {lacking[0]}; Distiller needs mean, std, num_classes, "
                "image_size and batch_size (those of distill_dynamics.data have them)"
            )
        if self.teacher_precision is not None and self.trainer.precision not in get_args(Precision):
            raise UserError(
                f"model.teacher_precision: with trainer.precision {self.trainer.precision} the teacher's "
                f"weights have that one too; leave it out, or set there {' or '.join(get_args(Precision))}"
            )
        self._seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        if not self.student.has_weights and self.student.normalised_by != "given":
            self.student.set_normalisation(data.mean, data.std)
            self.student.normalised_by = "data"
        crop = getattr(data, "crop_pct", self.student.evaluation.crop_pct)
        if self.student.given_crop_pct and self.student.evaluation.crop_pct != crop:
            raise UserError(
                f"model.student.crop_pct is {self.student.evaluation.crop_pct:g} and data.crop_pct {crop:g}: "
                "it is trained and validated on the data's images; set data.init_args.crop_pct"
            )
        size = (data.image_size, data.image_size)
        self.student.evaluation = Evaluation(
            size,
            crop,
            getattr(data, "interpolation", self.student.evaluation.interpolation),
        )
        if self.student.num_classes != data.num_classes:
            raise UserError(
                f"model.student has {self.student.num_classes} classes and the data {data.num_classes}; "
                f"set model.student.timm_kwargs.num_classes: {data.num_classes}"
            )
        if (
            self.teacher is not None
            and self.alpha > 0
            and self.teacher.num_classes != self.student.num_classes
        ):
            raise UserError(
                f"model.teacher has {self.teacher.num_classes} classes and the student "
                f"{self.student.num_classes}: SoftKD needs the same classes (or model.alpha: 0)"
            )
        for role, backbone in (("student", self.student), ("teacher", self.teacher)):
            if backbone is not None:
                try:
                    backbone.check_input(len(data.mean), data.image_size)
                except UserError as error:
                    raise UserError(f"model.{role}: {error}") from error
        dry_run(self, data, stage)
        self._renormalise_student = _Renormalise(data, self.student)
        if self.teacher is not None:
            self._renormalise_teacher = _Renormalise(data, self.teacher)
        if self.teacher is not None and self.teacher_cache is not None and stage == "fit":
            self.cache = TeacherCache.read(self.teacher_cache)
            self.cache.check(self.answers_identity())
            self.cache.check_whole()
            self.cache.check_some(self.trainer.global_rank, self.trainer.world_size)
            fields = self.use(self.cache)
            data.answers = self.cache.answers(fields) if fields else None
        if self.teacher is not None and self.shard_teacher and stage == "fit":
            shard(self.teacher, self.trainer.strategy)

    def _check_length(self) -> None:
        """UserError for a trainer that trains nothing; a warning for one that would not measure it."""
        trainer = self.trainer
        for name in ("max_epochs", "max_steps", "limit_train_batches"):
            if getattr(trainer, name) == 0:
                raise UserError(
                    f"trainer.{name} is 0: nothing would be trained (validate measures a model as it is)"
                )
        if trainer.limit_val_batches == 0:
            rank_zero_warn(
                "trainer.limit_val_batches is 0: no accuracy is measured, so there is no best.ckpt and no "
                "exported student"
            )
        if trainer.val_check_interval != 1.0:
            rank_zero_warn(
                "trainer.val_check_interval: what is measured within an epoch is for callbacks and the bar; "
                "metrics.csv and best.ckpt have what is measured at its end"
            )

    def answers_identity(self) -> dict[str, Any]:
        """What a cache of the teacher's answers must have been made by; the data are set up for fitting."""
        assert self.teacher is not None
        return identity(
            self.teacher, datamodule(self.trainer), self.teacher_precision or self.trainer.precision
        )

    def use(self, cache: TeacherCache) -> list[str]:
        """Settle what comes from a cache: its fields. UserError where it lacks what is not cheap to run."""
        if self.alpha > 0 and not cache.logit_fields():
            raise UserError(f"teacher_cache: {cache.folder} holds no logits, and alpha is {self.alpha}")
        cut = self.alpha > 0 and "classes" in cache.logit_fields()
        if cut and cache.temperature != self.soft_kd.temperature:
            raise UserError(
                f"teacher_cache: {cache.folder} was made with model.temperature {cache.temperature}, and "
                f"here it is {self.soft_kd.temperature}, for which it would have to hold all classes"
            )
        fields = {pair: name for pair, (name, _) in self.part_fields().items()}
        self._cached = {pair: name for pair, name in fields.items() if name in cache.layout.fields}
        self._uncached = sorted({self.pairs[name][i][1] for name, i in fields.keys() - self._cached.keys()})
        if self._uncached and self._uncached[-1] > cache.online:
            raise UserError(
                f"teacher_cache: {cache.folder} holds no map of the teacher's block {self._uncached[-1]} as "
                "the terms here need it; build one with this config"
            )
        logits = cache.logit_fields() if self.alpha > 0 else []
        return [*logits, *dict.fromkeys(self._cached.values())]

    def part_fields(self) -> dict[tuple[str, int], tuple[str, tuple[int, ...]]]:
        """A cache's field, name and shape, for what each pair's loss sees; runs both models on one image."""
        assert self.teacher is not None
        data = datamodule(self.trainer)
        image = torch.zeros(1, len(data.mean), data.image_size, data.image_size, device=self.device)
        with isolated(self.student):
            found = self.student(self.for_student(image), self.student_layers, logits=False)
            self._student_shapes = {
                s: x.shape[1:] for s, x in zip(self.student_layers, found.maps, strict=True)
            }
        with isolated(self.teacher):
            found = self.teacher(self.for_teacher(image), self.teacher_layers, logits=False)
        at = dict(zip(self.teacher_layers, found.maps, strict=True))
        return {
            (name, i): field_of(t, self._loss(name, i), self._student_shapes[s], at[t])
            for name, pairs in self.pairs.items()
            for i, (s, t) in enumerate(pairs)
        }

    def teacher_parts(self, maps: dict[int, Tensor]) -> dict[tuple[str, int], Tensor]:
        """What each pair's loss sees of the teacher's map [B, C, H, W]; of the blocks given alone."""
        return {
            (name, i): teacher_part(self._loss(name, i), self._student_shapes[s], maps[t])
            for name, pairs in self.pairs.items()
            for i, (s, t) in enumerate(pairs)
            if t in maps
        }

    def _loss(self, term: str, pair: int) -> nn.Module:
        losses: Any = self.terms[term]
        return losses[pair]

    def for_student(self, images: Tensor) -> Tensor:
        """A batch as the DataModule gives it, normalised and laid out as the student takes it."""
        return self._renormalise_student(images).contiguous(memory_format=self.memory_format)

    def for_teacher(self, images: Tensor) -> Tensor:
        """A batch as the DataModule gives it, normalised and laid out as the teacher takes it."""
        return self._renormalise_teacher(images).contiguous(memory_format=self.memory_format)

    def _apply(self, fn: Callable, *args: Any, **kwargs: Any) -> Distiller:
        """Moves to a device or dtype take the teacher along, though it is no submodule.

        One that is to be sharded stays where it is until then: whole, it may not fit a device.
        """
        teacher = self.__dict__.get("teacher")
        if teacher is not None and (is_sharded(teacher) or not self.shard_teacher):
            teacher._apply(fn, *args, **kwargs)
        return super()._apply(fn, *args, **kwargs)

    def configure_optimizers(self) -> Any:
        """AdamW and its schedule, or what the config puts in their place; the linear rule of the rate.

        Raises UserError for a schedule that does not fit the trainer, and for an optimiser or a schedule that
        does not follow from that of the checkpoint the run goes on from.
        """
        groups = decay_groups(self, {f"student.{name}" for name in self.student.no_weight_decay()})
        factor = 1.0 if self.lr_images is None else self.global_batch / self.lr_images
        self.optimisation = Optimisation(
            self.make_optimizer, groups, factor, self.make_scheduler, self.trainer, self._saved_settings
        )
        return self.optimisation.for_lightning()

    @property
    def global_batch(self) -> int:
        """Images a step of the optimiser: batch × devices × accumulated batches."""
        trainer = self.trainer
        return datamodule(trainer).batch_size * trainer.world_size * trainer.accumulate_grad_batches

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what builds the student again, the teacher's accuracy, and how far a begun epoch has come.

        With the last, and as order, augmentation and dropout are functions of where training is, a run that
        is continued in the middle of an epoch equals one that was not interrupted: to the bit on a CPU. Its
        loader skips what was seen (`ImageLoader.load_state_dict`). It takes the same `_layout`.

        Raises UserError instead of saving weights that are not finite, or that such a loss was seen with.
        """
        self._check_finite()
        if not torch.stack([parameter.isfinite().all() for parameter in self.parameters()]).all():
            self._diverged(f"what step {self.trainer.global_step} made of the weights", "NaN or infinity")
        checkpoint["distill_dynamics"] = {
            "student": self.student.description(),
            "teacher_accuracy": self.teacher_accuracy,
            "teacher": self._teacher_facts(),
            "begun_epoch": self._begun_epoch(),
            "settings": self.optimisation.settings,
        }

    def _teacher_facts(self) -> dict[str, Any] | None:
        """What the teacher is, so that the accuracy of one is not taken for that of another."""
        return None if self.teacher is None else self.teacher.description() | {"weights": self.teacher.source}

    def _begun_epoch(self) -> dict[str, Any] | None:
        """What the epoch's row needs of the steps made so far, and what must not change before the next."""
        if self._epoch_sum is None:
            return None
        sums: Any = self.all_gather(self._epoch_sum)
        return {
            "sums": sums.reshape(-1, len(self._epoch_sum)).cpu(),
            "steps": self._epoch_steps,
            "images": self._epoch_images,
            "seconds": self._epoch_seconds + time.perf_counter() - self._clock,
            "layout": self._layout(),
        }

    def _layout(self) -> dict[str, Any]:
        """By name, what decides which images of an epoch are left after a number of steps."""
        trainer, data = self.trainer, datamodule(self.trainer)
        return {
            "devices": trainer.world_size,
            "images a batch": data.batch_size,
            "batches a step": trainer.accumulate_grad_batches,
            **getattr(data, "order_depends_on", dict)(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the accuracy of the same teacher from the checkpoint, and the begun epoch.

        Raises UserError where that was begun with another `_layout`.
        """
        if "distill_dynamics" not in checkpoint:
            raise UserError(
                "ckpt_path: not a checkpoint of this project's fit, so no run to continue; "
                "to start from its weights, name it as model.student.checkpoint"
            )
        check_weights(self, checkpoint)
        ours = checkpoint["distill_dynamics"]
        if ours.get("teacher", self._teacher_facts()) == self._teacher_facts():
            self.teacher_accuracy = ours["teacher_accuracy"]
        self._begun = checkpoint["distill_dynamics"].get("begun_epoch")
        if self.trainer.state.fn == "fit":
            self._saved_settings = saved_settings(checkpoint)
        if self._begun is not None and self.trainer.state.fn == "fit":
            was, now = self._begun["layout"], self._layout()
            both = {name: (was.get(name), now.get(name)) for name in was | now}
            others = [f"{name} {a}, now {b}" for name, (a, b) in both.items() if a != b]
            if others:
                raise UserError(
                    f"ckpt_path: it was saved in the middle of epoch {checkpoint['epoch'] + 1}, with other "
                    f"images left of it: {'; '.join(others)}. Give what it had, or go on from the end of an "
                    "epoch (last.ckpt, epoch_*.ckpt)"
                )


def datamodule(trainer: Trainer) -> Any:
    """The DataModule of a run; Lightning's Trainer has it without declaring it."""
    return getattr(trainer, "datamodule", None)


def _pairs(name: str, term: Term, student: Backbone, teacher: Backbone) -> list[tuple[int, int]]:
    for backbone in (student, teacher):
        backbone.resolve_layers("all")  # refuses a model without intermediates
    try:
        return pair_layers(len(student.layers), len(teacher.layers), term.first, term.last, term.pairs)
    except UserError as error:
        raise UserError(f"model.terms.{name}: {error}") from error


def accuracies(classes: int) -> MetricCollection:
    """`acc1` and `acc5` in percent; padding counts nowhere, and few classes have no fifth guess."""
    classes = max(classes, 2)
    return MetricCollection(
        {
            f"acc{k}": 100.0
            * MulticlassAccuracy(
                classes,
                top_k=min(k, classes),
                average="micro",
                ignore_index=IGNORED,
                validate_args=False,  # it would ask a GPU for the targets of every batch
            )
            for k in (1, 5)
        }
    )


class _Renormalise:
    """From the data's normalisation to the backbone's: x ↦ scale·x + shift; x itself where they are equal."""

    def __init__(self, data: Any, backbone: Backbone) -> None:
        self.same = tuple(data.mean) == backbone.mean and tuple(data.std) == backbone.std
        data_mean, data_std, mean, std = (
            torch.tensor(v).view(1, -1, 1, 1) for v in (data.mean, data.std, backbone.mean, backbone.std)
        )
        self.scale, self.shift = data_std / std, (data_mean - mean) / std

    def __call__(self, images: Tensor) -> Tensor:
        if self.same:
            return images
        if self.scale.device != images.device or self.scale.dtype != images.dtype:
            # Once: a copy to a GPU at every step would wait for it.
            self.scale, self.shift = self.scale.to(images), self.shift.to(images)
        return torch.addcmul(self.shift, images, self.scale)
