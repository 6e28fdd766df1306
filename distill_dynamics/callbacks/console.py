"""What `fit` prints while it trains: who learns what from whom, and how far it is."""

from __future__ import annotations

import inspect
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ProgressBar as LightningProgressBar
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from distill_dynamics.losses import CrossEntropy, SoftKD
from distill_dynamics.models.backbone import Backbone
from distill_dynamics.models.input_size import teacher_side, views_side
from distill_dynamics.models.teacher import Teacher
from distill_dynamics.models.teacher_check import accuracy_line, doubt, framed, images_measured, quality_text
from distill_dynamics.runs.directory import starts_of
from distill_dynamics.runs.scores import OF_CLASSES, OF_FEATURES
from distill_dynamics.tables import aligned, cost_rows
from distill_dynamics.text import counted
from distill_dynamics.train.checkpoints import BEST_BY
from distill_dynamics.train.distiller import Distiller
from distill_dynamics.train.metrics import datamodule
from distill_dynamics.train.precision_error import precision_error
from distill_dynamics.train.terms import BoundTerm

REFRESH_S = 0.2
"""How long the bar stands still: to show the loss is to wait for a GPU."""


class ProgressBar(TQDMProgressBar):
    """Lightning's progress bar, without the logger's version in it, drawn a few times a second."""

    _drawn = 0.0

    def get_metrics(self, trainer: Trainer, pl_module: Distiller) -> dict:
        """Loss and accuracy."""
        metrics = {k: v for k, v in super().get_metrics(trainer, pl_module).items() if k != "v_num"}
        step = getattr(pl_module, "latest", None)  # none before the first
        return metrics if step is None else {"loss": f"{step.values[0].item():.3f}", **metrics}

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Draw it, if it is time or the epoch's end."""
        if trainer.is_last_batch or time.monotonic() - self._drawn > REFRESH_S:
            super().on_train_batch_end(trainer, *args)
            self._drawn = time.monotonic()

    def on_train_start(self, trainer: Trainer, *args: Any) -> None:
        """Show an epoch that is continued in its middle, of which Lightning calls no start."""
        super().on_train_start(trainer, *args)
        if trainer.fit_loop.restarted_mid_epoch:
            self.on_train_epoch_start(trainer, *args)

    def on_train_epoch_start(self, trainer: Trainer, *args: Any) -> None:
        """Count epochs from 1: the bar shows the one that is being trained."""
        super().on_train_epoch_start(trainer, *args)
        self.train_progress_bar.set_description(f"Epoch {trainer.current_epoch + 1}/{trainer.max_epochs}")


def on_terminal() -> bool:
    """Whether standard output is one: in a file a bar is a heap of lines."""
    return sys.stdout is not None and sys.stdout.isatty()


def shows_bars(callbacks: Iterable[Callback]) -> bool:
    """Whether bars are drawn: on a terminal, and where one of the callbacks is a bar."""
    return on_terminal() or any(isinstance(callback, LightningProgressBar) for callback in callbacks)


class Console(Callback):
    """Prints a summary of models, data and loss before training, and a line an epoch."""

    def __init__(self) -> None:
        self._began = (0.0, 0)  # when this process began to train, and with which step

    @rank_zero_only
    def on_train_start(self, trainer: Trainer, pl_module: Distiller) -> None:
        """Print who learns what from whom."""
        data = datamodule(trainer)
        rows = [("run", trainer.default_root_dir)]
        for name, teacher in pl_module.teachers.items():
            rows.append((teacher.title, _model(teacher.backbone)))
            rows.append(("", accuracy_line(teacher.backbone, teacher.accuracy, data)))
            if (own := teacher_side(teacher.backbone, data)) != views_side(data):
                rows.append(("", f"views of {views_side(data)} px are resized to its {own} px"))
            reads = pl_module.teacher_reads(name) if teacher.cache is None else ()
            if line := precision_error(teacher, trainer, reads):
                rows.append(("", line))
        rows += [("" if i else "student", line) for i, line in enumerate(_student(pl_module.student))]
        if pl_module.untrained:
            rows.append(("", f"untrained: {quality_text(pl_module.untrained, len(data.val_classes))}"))
        drawn = f" (views of {views_side(data)} px)" if views_side(data) != data.image_size else ""
        steps = counted(trainer.num_training_batches, "step")
        rows.append(
            (
                "data",
                f"{type(data).__name__}: {data.num_classes or 'no'} classes, {data.image_size} px{drawn}, "
                f"{steps} of {pl_module.global_batch} images an epoch",
            )
        )
        if not getattr(data, "has_val", True):
            rows.append(("", "no validation images: nothing is measured, and the last student is exported"))
        rows += [("loss" if i == 0 else "", line) for i, line in enumerate(_terms(pl_module))]
        rows.append(("optimiser", pl_module.optimisation.summary()))
        record = starts_of(Path(trainer.default_root_dir))[-1]
        rows += [("" if i else "cost", line) for i, line in enumerate(aligned(cost_rows(record)))]
        wide = max(10, *(len(name) for name, _ in rows))
        print("\n" + "\n".join(f"  {name:<{wide}} {text}" for name, text in rows) + "\n", flush=True)
        self._began = time.monotonic(), trainer.global_step
        for warning in doubts_of(pl_module):
            print(framed(warning), file=sys.stderr)

    @rank_zero_only
    def on_epoch_row(self, trainer: Trainer, pl_module: Distiller, row: dict[str, float]) -> None:
        """Print how far training is, by the epoch's row of metrics.csv."""
        bar = trainer.progress_bar_callback
        line = self._epoch_line(trainer, pl_module, row)
        if isinstance(bar, ProgressBar):
            bar.print(line)
        else:
            print(line, flush=True)

    def _epoch_line(self, trainer: Trainer, pl_module: Distiller, row: dict[str, float]) -> str:
        of = f"/{trainer.max_epochs}" if (trainer.max_epochs or -1) > 0 else ""
        parts = [f"epoch {trainer.current_epoch + 1}{of}", f"loss {row['train/loss']:.4g}"]
        scores = OF_CLASSES if pl_module.student.num_classes else OF_FEATURES
        if (top1 := row.get(scores[0].metric)) is not None:
            named = "val" if scores is OF_CLASSES else "kNN"
            parts += [f"{named} {top1:.2f}", f"best {max(top1, _best(trainer)):.2f}"]
        parts += [
            f"{teacher.title} {teacher.accuracy[scores[0].name]:.2f}"
            for teacher in pl_module.teachers.values()
            if teacher.accuracy
        ]
        parts += [f"rate {row['train/lr']:.2g}", f"{row['train/images_per_s']:.0f} images/s"]
        (began, first), steps = self._began, trainer.estimated_stepping_batches
        if trainer.global_step > first and steps < float("inf"):
            a_step = (time.monotonic() - began) / (trainer.global_step - first)
            parts.append(f"{duration(a_step * (steps - trainer.global_step))} left")
        return "  ".join(parts)


def _best(trainer: Trainer) -> float:
    """The best top-1 so far, -inf before there is one."""
    for callback in trainer.checkpoint_callbacks:
        score = getattr(callback, "best_model_score", None)
        if getattr(callback, "monitor", None) in BEST_BY and score is not None:
            return float(score)
    return float("-inf")


def duration(seconds: float) -> str:
    """ "40 s", "12 min" or "3 h 05 min"."""
    if seconds < 60:
        return f"{max(seconds, 0):.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"


def doubts_of(distiller: Distiller) -> list[str]:
    """What is to be doubted of the teachers."""
    return [text for teacher in distiller.teachers.values() if (text := doubt_of(teacher, distiller.trainer))]


def doubt_of(teacher: Teacher, trainer: Trainer) -> str | None:
    """What is to be doubted of a teacher, if anything."""
    data = datamodule(trainer)
    classes, images = len(getattr(data, "val_classes", ())), images_measured(data)
    return doubt(teacher.backbone, teacher.accuracy, classes, teacher.key, teacher.title, images)


def _model(backbone: Backbone) -> str:
    count = sum(p.numel() for p in backbone.parameters()) / 1e6
    widths = sorted(set(backbone.channels))
    width = f"{widths[0]}" if len(widths) == 1 else f"{widths[0]} to {widths[-1]}" if widths else "?"
    name = " of ".join(filter(None, [backbone.name, backbone.timm_kwargs.get("base")]))
    layers = counted(len(backbone.layers), "layer")
    return f"{name}: {count:.2f} M parameters, {layers} of {width} channels"


def _student(student: Backbone) -> list[str]:
    lines = [_model(student)]
    if student.has_weights:
        head = ", with a new head" if student.new_head and student.num_classes else ""
        lines.append(f"begins from {student.source}{head}")
    if student.frozen:
        count = sum(p.numel() for p in student.parameters() if p.requires_grad)
        lines.append(f"frozen but for its head, {count:,} parameters of {student.num_classes} classes")
    return lines


def _terms(distiller: Distiller) -> list[str]:
    terms: Any = distiller.terms
    return [f"{_weight(term)} x {_term(name, term)}" for name, term in terms.items()]


def _term(name: str, term: BoundTerm) -> str:
    loss: Any = term[0]
    if name == "ce" and isinstance(loss, CrossEntropy):
        return f"cross-entropy (label smoothing {loss.label_smoothing:g})"
    if name == "kd" and isinstance(loss, SoftKD):
        return f"{type(loss).__name__} (temperature {_number(loss.temperature)})"
    pairs = ", ".join(f"{s}-{t}" for s, t in term.pairs)
    text = f"{name}: {type(loss).__name__}" + (f", student-teacher blocks {pairs}" if pairs else "")
    text += "".join(f", {line}" for line in _pooled_maps(term))
    if term.gate is None:
        return text
    return f"{text}, {type(term.gate).__name__} {term.gates.min():.2g} to {term.gates.max():.2g}"


def _pooled_maps(term: BoundTerm) -> list[str]:
    """Which maps are pooled, where losses compare maps on two grids."""
    found: dict[str, None] = {}
    for loss, grids in zip(term, term.grids, strict=True):
        cacheable: Any = getattr(loss, "cacheable", None)
        if len(grids) == 2 and cacheable and "student_map" in inspect.signature(cacheable).parameters:
            least = tuple(map(min, *grids.values()))
            for who, grid in grids.items():
                if grid != least:
                    found[f"the {who}'s {_size(grid)} patches pooled to {_size(least)}"] = None
    return [*found]


def _size(grid: Iterable[int]) -> str:
    return " x ".join(map(str, grid))


def _weight(term: BoundTerm) -> str:
    weight = _number(term.weight) if callable(term.weight) else f"{term.weight:.2f}"
    return weight if term.budget is None else f"{weight} (budget {term.budget:g})"


def _number(value: float | Callable[[float], float]) -> str:
    if not callable(value):
        return f"{value:g}"
    return f"{type(value).__name__} {value(0.0):g} to {value(1.0):g}"
