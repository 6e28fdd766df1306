"""What is measured on the validation images."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from distill_dynamics.data.batches import IGNORED
from distill_dynamics.models.input_size import of_side, teacher_side
from distill_dynamics.models.teacher import Teacher
from distill_dynamics.train.quality import batches_of, batches_to_measure, measure_features


def datamodule(trainer: Trainer) -> Any:
    """The DataModule of a run; Lightning's Trainer has it without declaring it."""
    return getattr(trainer, "datamodule", None)


class WeightedMean(Metric):
    """Σ value · weight / Σ weight, NaN and all.

    torchmetrics' MeanMetric has a GPU wait to leave NaN out; told not to, it takes every weight for 1.
    """

    total: Tensor
    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("total", "weight"):
            self.add_state(name, torch.tensor(0.0), "sum")

    def update(self, value: Tensor, weight: Tensor) -> None:
        """Take in a batch."""
        self.total += value * weight
        self.weight += weight

    def compute(self) -> Tensor:
        """Of all batches and ranks."""
        return self.total / self.weight


class TopK(Metric):
    """Images in percent whose target is among the k likeliest classes; padding counts nowhere.

    torchmetrics' own has a GPU wait in every batch to leave padding out. The values are the same.
    """

    hits: Tensor
    seen: Tensor

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k
        for name in ("hits", "seen"):
            self.add_state(name, torch.tensor(0), "sum")

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Take in a batch, [B, K] and [B]."""
        # Of equals argmax has the first; topk may have another.
        likeliest = logits.argmax(1, keepdim=True) if self.k == 1 else logits.topk(self.k).indices
        self.hits += (likeliest == targets[:, None]).sum()  # what is ignored is no class, so no hit
        self.seen += (targets != IGNORED).sum()

    def compute(self) -> Tensor:
        """Of all batches and ranks; 0 of none."""
        return 100.0 * (self.hits / self.seen.clamp(min=1))


def accuracies(classes: int) -> MetricCollection:
    """`acc1` and `acc5` in percent; few classes have no fifth guess."""
    most = max(classes, 1)  # a student without a head has 0, and is not asked
    # Groups are metrics whose first batch had equal counts, which is no reason to count once for both.
    return MetricCollection({f"acc{k}": TopK(min(k, most)) for k in (1, 5)}, compute_groups=False)


def measure(teacher: Teacher, trainer: Trainer, classes: int) -> dict[str, float]:
    """The teacher's acc1 and acc5 on the student's validation images, at the teacher's own size.

    For a student without `classes` it is the quality of its features. {} where nothing is validated.
    """
    data = datamodule(trainer)
    loader = data.val_dataloader(**of_side(data, teacher_side(teacher.backbone, data)))
    if classes == 0:
        return measure_features(teacher.pooled, loader, trainer, f"the {teacher.title}")
    if (count := batches_to_measure(trainer, loader)) == 0:
        return {}
    device = trainer.strategy.root_device
    metrics = accuracies(classes).to(device)
    with trainer.precision_plugin.forward_context():
        for images, targets, *_ in batches_of(trainer, loader, count, teacher.title):
            metrics.update(teacher.logits(images.to(device)), targets.to(device))
    return {name: value.item() for name, value in metrics.compute().items()}
