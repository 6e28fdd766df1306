"""A training step of the quickstart's size through Trainer and Distiller ÷ the same step as a bare loop.

Both see the same batches from memory, the same models, losses and optimiser. Runs of STEPS steps
alternate A B A B; the ratio is that of the medians of the time a step.

    python tests/benchmarks/bench_step.py
"""

import platform
import statistics
import tempfile
import time

import lightning.pytorch as pl
import timm
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from distill_dynamics import Backbone, Distiller, Term
from distill_dynamics.callbacks import ProgressBar
from distill_dynamics.losses import SoftKD, SpectralKD

BATCH, STEPS, WARMUP, ROUNDS = 128, 30, 5, 8
VIT = {"img_size": 28, "patch_size": 7, "in_chans": 1, "num_classes": 10}
STUDENT = {**VIT, "embed_dim": 32, "depth": 12, "num_heads": 2}
TEACHER = {**VIT, "embed_dim": 64, "depth": 12, "num_heads": 4, "init_values": 0.1}
BATCHES = [(torch.randn(BATCH, 1, 28, 28), torch.randint(0, 10, (BATCH,))) for _ in range(STEPS)]


class InMemory(pl.LightningDataModule):
    """Batches that cost nothing, so that the step alone is measured."""

    mean, std, num_classes, image_size, batch_size = (0.2860,), (0.3530,), 10, 28, BATCH

    def train_dataloader(self) -> DataLoader:
        return DataLoader(BATCHES, batch_size=None)


def bare_loop() -> list[float]:
    """Seconds of each step of a loop as one would write it by hand."""
    student = timm.create_model("deit_tiny_patch16_224", **STUDENT).train()
    teacher = timm.create_model("cait_xxs24_224", **TEACHER).eval().requires_grad_(False)
    soft_kd, spectral = SoftKD(), SpectralKD()
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4, weight_decay=0.05)
    # The teacher of the other side has another normalisation, so the change is made here too.
    times = []
    for images, targets in BATCHES:
        began = time.perf_counter()
        with torch.no_grad():
            final, teacher_maps = teacher.forward_intermediates(
                images * 1.1 + 0.1, indices=[0, 11], norm=False
            )
            teacher_logits = teacher.forward_head(final)
        final, maps = student.forward_intermediates(images, indices=[0, 11], norm=False)
        logits = student.forward_head(final)
        loss = 0.1 * F.cross_entropy(logits, targets, label_smoothing=0.1) + 0.9 * soft_kd(
            logits, teacher_logits
        )
        loss = loss + 0.2 * (spectral(maps[0], teacher_maps[0]) + spectral(maps[1], teacher_maps[1])) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        times.append(time.perf_counter() - began)
    return times[WARMUP:]


class Clock(pl.Callback):
    """Time from the end of one step to the end of the next: whatever the Trainer does is in it."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_start(self, *args: object) -> None:
        self.ends.append(time.perf_counter())


def ours() -> list[float]:
    """Seconds of each step through Distiller and Trainer, progress bar on."""
    clock = Clock()
    teacher = Backbone("cait_xxs24_224", timm_kwargs=TEACHER)
    distiller = Distiller(
        Backbone("deit_tiny_patch16_224", timm_kwargs=STUDENT),
        teacher,
        {"spectral": Term(SpectralKD, weight=0.2, first=1, last=1)},
    )
    distiller._measure_teacher = lambda teacher: {"acc1": 0.0}  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            max_epochs=1,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            limit_val_batches=0,
            default_root_dir=folder,
            callbacks=[clock, ProgressBar()],
        )
        trainer.fit(distiller, datamodule=InMemory())
    return [b - a for a, b in zip(clock.ends, clock.ends[1:], strict=False)][WARMUP:]


def main() -> None:
    """Alternate the two and print the ratio."""
    ratios, medians = [], {"ours": [], "bare": []}
    for _ in range(ROUNDS):
        a, b = statistics.median(ours()), statistics.median(bare_loop())
        medians["ours"].append(a)
        medians["bare"].append(b)
        ratios.append(a / b)
    print(
        f"training step, batch {BATCH}: ours / bare loop = {statistics.median(ratios):.3f} "
        f"(rounds {min(ratios):.3f} to {max(ratios):.3f}; medians "
        f"{statistics.median(medians['ours']) * 1e3:.1f} and "
        f"{statistics.median(medians['bare']) * 1e3:.1f} ms; {torch.get_num_threads()} threads, "
        f"{platform.processor() or platform.machine()}, torch {torch.__version__})"
    )


if __name__ == "__main__":
    main()
