"""Images a second of trainings as `fit` runs them, beside a loop as one would write it.

What is expected is of one H100: the bounds of its memory and its products, less a third.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import torch
import torch.nn.functional as F
from here import Here, Row
from torch.utils.data import DataLoader
from uncommanded import AtStep, fit

from distill_dynamics import Backbone, Distiller, Term
from distill_dynamics.data import ImageData
from distill_dynamics.data.sources import ArraySource
from distill_dynamics.losses import SoftKD, SpectralKD

WARM, WINDOW, WINDOWS = 8, 10, 4
"""Steps that are not counted; steps between two looks at the clock, which wait for the device; windows."""

KINDS: dict[str, tuple[dict[str, Any], float | None]] = {
    "SoftKD, float32": ({"precision": "32-true"}, 1000),
    "SoftKD, bf16-mixed": ({}, 2400),
    "SoftKD and SpectralKD, bf16-mixed": ({"term": True}, None),
    "student alone, bf16-mixed": ({"teacher": False}, None),
    "SoftKD, bf16-mixed, compiled": ({"compile": True}, 4200),
}


class Drawn(ImageData):
    """Random images in memory, the same batches over and over."""

    classes = [str(number) for number in range(1000)]  # noqa: RUF012
    in_chans = 3

    def __init__(self, here: Here) -> None:
        self.here = here
        super().__init__(
            mean=(0.5,) * 3, std=(0.5,) * 3, image_size=32 if here.small else 224,
            batch_size=4 if here.small else 256, augment={"no_aug": True},
        )  # fmt: skip

    def load(self, split: str) -> ArraySource:
        import numpy as np

        shape = (self.batch_size, self.image_size, self.image_size, 3)
        pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        return ArraySource(pixels, np.arange(len(pixels)) % 1000)

    def train_dataloader(self) -> Any:
        # Made once and pinned, so that no worker is measured.
        images, targets = next(iter(super().train_dataloader()))
        pair = (images.pin_memory(), targets.pin_memory()) if self.here.is_gpu else (images, targets)
        return DataLoader([pair] * (WARM + WINDOW * WINDOWS + 1), batch_size=None)


class Clock:
    """Seconds a step, by windows; ends a loop that has no end of its own."""

    def __init__(self, here: Here) -> None:
        self.here, self.marks = here, list[float]()
        self.warm, self.window, self.windows = (1, 1, 1) if here.small else (WARM, WINDOW, WINDOWS)

    def __call__(self, step: int) -> None:
        if step >= self.warm and (step - self.warm) % self.window == 0:
            self.here.finish()
            self.marks.append(time.perf_counter())
        if len(self.marks) > self.windows:
            raise StopIteration

    @property
    def seconds(self) -> float:
        steps = zip(self.marks, self.marks[1:], strict=False)
        return statistics.median(b - a for a, b in steps) / self.window


def rows(here: Here) -> Iterator[Row]:
    """Each kind: images a second, memory, and `fit` beside the loop; of a compiled one its first step."""
    for name, (settings, expected) in KINDS.items():
        if here.seconds_left() < 60 or (settings.get("compile") and not here.is_gpu):
            yield Row(f"{name}: no time left, or no GPU to compile for", "left out")
            continue
        if here.is_gpu:
            torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        taken = _fit(here, **settings)
        images = Drawn(here).batch_size
        yield Row(f"{name}: fit", images / taken, "images/s", at_least=expected and here.of_gpu(expected))
        if here.is_gpu:
            yield Row(f"{name}: most memory", torch.cuda.max_memory_allocated() / 1e9, "GB", at_most=14)
        if settings.get("compile"):
            yield Row(f"{name}: all of it, compiling too", time.perf_counter() - began, "s")
            continue
        loop = _timed(here, lambda clock, settings=settings: _by_hand(here, clock, **settings))
        yield Row(f"{name}: fit ÷ loop by hand", taken / loop, "", at_most=here.of_gpu(1.02))


def _timed(here: Here, work: Callable[[Clock], None]) -> float:
    clock = Clock(here)
    with suppress(StopIteration):
        work(clock)
    return clock.seconds


def _models(here: Here, teacher: bool) -> tuple[Backbone, Backbone | None]:
    torch.manual_seed(0)
    small = {"img_size": 32, "patch_size": 16, "depth": 2} if here.small else {}
    given = {"timm_kwargs": small, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    taught = Backbone("cait_s24_224", **given) if teacher else None
    return Backbone("deit_tiny_patch16_224", **given), taught


def _fit(
    here: Here, precision: str = "bf16-mixed", teacher: bool = True, term: bool = False, compile: bool = False
) -> float:
    terms = {"spectral": Term(SpectralKD, weight=0.2, first=1, last=1)} if term else {}
    distiller = Distiller(*_models(here, teacher), terms, compile=compile)
    if distiller.teacher is not None:
        distiller.teacher.accuracy = {"acc1": 0.0}  # as if it were known: its time is none of a step's
    settings = {"precision": precision, "max_epochs": 1, "limit_val_batches": 0}
    return _timed(here, lambda clock: fit(here, distiller, Drawn(here), AtStep(clock), **settings) and None)


def _by_hand(
    here: Here, clock: Clock, precision: str = "bf16-mixed", teacher: bool = True, term: bool = False
) -> None:
    student, taught = _models(here, teacher)
    student.to(here.device).train()
    if taught is not None:
        taught.to(here.device).requires_grad_(False).eval()
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3, weight_decay=0.05, fused=True)
    data = Drawn(here)
    data.setup("fit")
    soft_kd, spectral_kd, layers = SoftKD(), SpectralKD(), [1, -1] if term else []
    for step, batch in enumerate(data.train_dataloader()):
        clock(step)
        images, targets = (part.to(here.device, non_blocking=True) for part in batch)
        with torch.autocast(here.device, torch.bfloat16, enabled=precision != "32-true"):
            logits, maps = student(images, layers)
            loss = F.cross_entropy(logits, targets, label_smoothing=0.1)
            if taught is not None:
                with torch.no_grad():
                    teacher_logits, teacher_maps = taught(images, layers)
                loss = 0.1 * loss + 0.9 * soft_kd(logits, teacher_logits)
                for one, other in zip(maps, teacher_maps, strict=True):
                    loss = loss + 0.1 * spectral_kd(one, other)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
