"""Images a second of trainings as `fit` runs them, beside the same by hand over timm's models, and by others.

What is expected is of one H100: the bounds of its memory and its products, less a third.
"""

import gc
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from here import Here, Row
from peers import BETA, DECAY, LR, by_hand, timm_task, torchdistill
from sizes import SIZES, Made, Size
from trainings import AtStep, fit, trainer

from distill_dynamics import Backbone, Distiller, Term
from distill_dynamics.losses import SpectralKD
from distill_dynamics.runs import lease
from distill_dynamics.train.cache_teacher import CacheTeacher

WARM, WINDOW, WINDOWS = 8, 10, 4
"""Steps that are not counted; steps between two looks at the clock, which wait for the device; windows."""

KINDS: dict[str, tuple[dict[str, Any], float | None]] = {
    "SoftKD, float32": ({"half": False}, 1000),
    "SoftKD, bfloat16": ({}, 2400),
    "SoftKD and SpectralKD, bfloat16": ({"spectral": True}, None),
    "student alone, bfloat16": ({"taught": False}, None),
}
COMPILING = 90
"""Seconds that have to be left for models to be compiled."""


class Clock:
    """Seconds a step, by windows; ends a loop that has no end of its own."""

    def __init__(self, here: Here) -> None:
        self.here, self.marks, self.steps = here, list[float](), 0
        self.warm, self.window, self.windows = (1, 1, 1) if here.small else (WARM, WINDOW, WINDOWS)

    def __call__(self) -> None:
        if self.steps >= self.warm and (self.steps - self.warm) % self.window == 0:
            self.here.finish()
            self.marks.append(time.perf_counter())
        self.steps += 1
        if len(self.marks) > self.windows:
            raise StopIteration

    @property
    def seconds(self) -> float:
        steps = zip(self.marks, self.marks[1:], strict=False)
        return statistics.median(b - a for a, b in steps) / self.window


def rows(here: Here) -> Iterator[Row]:
    """Each kind beside the loop, a cached step, timm's task, torchdistill; then what is compiled."""
    paper = replace(SIZES["CaiT-S24 → DeiT-Ti"], batch=256, device=here.device)
    size = replace(SIZES["Fashion-MNIST size"], batch=4, device=here.device) if here.small else paper
    half, taken = replace(size, half=True), dict[str, float]()
    for name, (settings, expected) in KINDS.items():
        if here.seconds_left() < 60:
            yield Row(f"{name}: no time is left", "left out")
            continue
        kind = {"taught": True, "spectral": False, **settings}
        of_kind = size if kind.pop("half", True) is False else half
        taken[name] = _timed(here, partial(_fit, here, size=of_kind, **kind))
        yield from _speed(here, name, size.batch / taken[name], expected)
        loop = _timed(here, partial(by_hand, size=of_kind, **kind))
        yield Row(f"{name}: fit ÷ loop by hand", taken[name] / loop, "", at_most=here.of_gpu(1.02))
    yield from _cached(here, half, taken.get("student alone, bfloat16", float("nan")))
    yield from _others(here, half, taken.get("SoftKD, bfloat16", float("nan")))
    yield from _compiled(here, half)


def _speed(here: Here, name: str, images: float, expected: float | None = None) -> Iterator[Row]:
    yield Row(f"{name}: fit", images, "images/s", at_least=expected and here.of_gpu(expected))
    if here.is_gpu:
        most = torch.cuda.max_memory_allocated() / 1e9
        yield Row(f"{name}: most memory", most, "GB", at_most=here.of_gpu(14))


def _cached(here: Here, size: Size, alone: float) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder, "cache")
        builder = CacheTeacher(*_models(size, taught=True))
        builder.folder, builder.shows_progress = cache, False
        try:
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                trainer(here, precision=_precision(size)).predict(
                    builder, datamodule=Made(size, views=1), return_predictions=False
                )
        finally:
            lease.release()
        taken = _timed(here, partial(_fit, here, size=size, teacher_cache=str(cache)))
    yield from _speed(here, "cached SoftKD, bfloat16", size.batch / taken)
    yield Row("cached SoftKD, bfloat16: ÷ student alone", taken / alone, "", at_most=here.of_gpu(1.05))


def _others(here: Here, size: Size, ours: float) -> Iterator[Row]:
    others: dict[str, Callable[..., None]] = {"timm.task": timm_task, "torchdistill": torchdistill}
    for name, other in others.items():
        if name == "torchdistill" and find_spec(name) is None:
            yield Row("torchdistill is not installed", "left out")
        elif here.seconds_left() < 60:
            yield Row(f"{name}: no time is left", "left out")
        else:
            taken = _timed(here, partial(other, size=size))
            yield Row(f"SoftKD, bfloat16: fit ÷ {name}", ours / taken, "", at_most=here.of_gpu(1))


def _compiled(here: Here, size: Size) -> Iterator[Row]:
    found = []
    for name, work in {
        "fit": partial(_fit, here, size=size, compile=True),
        "timm.task": partial(timm_task, size=size, compiled=True),
    }.items():
        if here.seconds_left() < COMPILING or not here.is_gpu:
            yield Row(f"{name}, compiled: no GPU to compile for, or no time is left", "left out")
            return
        began = time.perf_counter()
        found.append(_timed(here, work))
        if name == "fit":
            yield from _speed(here, "SoftKD, bfloat16, compiled", size.batch / found[0], 4200)
        yield Row(f"{name}, compiled: all of it, compiling too", time.perf_counter() - began, "s")
    yield Row("SoftKD, bfloat16, compiled: fit ÷ timm.task", found[0] / found[1], "", at_most=here.of_gpu(1))


def _timed(here: Here, work: Callable[[Clock], None]) -> float:
    gc.collect()  # a training's objects know each other
    if here.is_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    clock = Clock(here)
    with suppress(StopIteration):
        work(clock)
    return clock.seconds


def _models(size: Size, taught: bool) -> tuple[Backbone, Backbone | None]:
    torch.manual_seed(0)
    student = Backbone(size.student, timm_kwargs=size.student_kwargs)
    return student, Backbone(size.teacher, timm_kwargs=size.teacher_kwargs) if taught else None


def _precision(size: Size) -> str:
    return "bf16-mixed" if size.half else "32-true"


def _fit(
    here: Here, clock: Clock, size: Size, taught: bool = True, spectral: bool = False, **settings: Any
) -> None:
    terms = {"spectral": Term(SpectralKD, weight=BETA, first=1, last=1)} if spectral else {}
    distiller = Distiller(*_models(size, taught), terms, **settings, optimizer=_adamw)
    if distiller.teacher is not None:
        distiller.teacher.accuracy = {"acc1": 0.0}  # as if it were known: its time is none of a step's
    data = Made(size, views=1 if settings.get("teacher_cache") else None)
    alone = {"precision": _precision(size), "max_epochs": 1, "limit_val_batches": 0}
    fit(here, distiller, data, AtStep(lambda _: clock()), **alone)


def _adamw(weights: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(weights, lr=LR, weight_decay=DECAY, fused=True)
