"""How good a student's features are where training has no classes; labels of the validation images tell.

Letters: B batch, D pooled width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat
from tqdm import tqdm

from distill_dynamics.data.batches import IGNORED
from distill_dynamics.dynamics.measures.feature_quality import feature_quality, halves
from distill_dynamics.errors import UserError


def measures_quality(data: Any) -> bool:
    """Whether training has no classes, and the validation images of a DataModule have."""
    return data.num_classes == 0 and bool(getattr(data, "val_classes", ()))


def check_labelled(data: Any) -> None:
    """UserError where validation images have labels by which no student can be told from another."""
    if not measures_quality(data):
        return
    targets = torch.as_tensor(data.sources["val"].targets, dtype=torch.int64)
    classes = len(targets.unique())
    if classes < 2 or halves(targets).all():
        raise UserError(
            f"data: {len(targets)} labelled validation images of {classes} classes; two classes are needed, "
            "and two images of one of them: one half classifies the other"
        )


def quality_facts(data: Any, whole: bool) -> dict[str, int]:
    """What a figure is to be read with: classes of the validation images, and how many images are queries.

    The latter is known where the `whole` of them is measured.
    """
    if data.num_classes:
        return {}
    if not whole:
        return {"val_classes": len(data.val_classes)}
    targets = data.sources["val"].targets if data.has_val else []
    queries = int((~halves(torch.as_tensor(targets, dtype=torch.int64))).sum())
    return {"val_classes": len(data.val_classes), "val_queries": queries}


class FeatureQuality(Metric):
    """`feature_quality` of all images of all ranks: `halves` of them are bank and queries.

    They are put in the order of their places, so that the result does not depend on the number of ranks.
    Features of every image are kept until then, in float32: 77 MB of 50,000 images and 384 channels.
    """

    features: list[Tensor]
    targets: list[Tensor]
    places: list[Tensor]
    classes = 0
    """Of the images that were measured last."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("features", "targets", "places"):
            self.add_state(name, [], "cat")

    def update(self, features: Tensor, targets: Tensor, places: Tensor) -> None:
        """Take in a batch: [B, D], [B], and [B], which image of the data each is."""
        # Padding too: each rank needs to have something to give to the others.
        self.features.append(features.detach().float())
        self.targets.append(targets)
        self.places.append(places.to(targets.device))

    def compute(self) -> dict[str, float]:
        """knn1 and linear1 in percent, and effective_rank; NaN where they cannot be known."""
        features, targets, places = map(dim_zero_cat, (self.features, self.targets, self.places))
        if features.device.type not in ("cpu", "cuda"):  # Apple's have no float64
            features, targets, places = features.cpu(), targets.cpu(), places.cpu()
        order = places.argsort()
        order = order[targets[order] != IGNORED]
        features, targets = features[order], targets[order]
        self.classes = len(targets.unique())
        bank = halves(targets)
        return feature_quality(features[bank], targets[bank], features[~bank], targets[~bank])


def quality_of(metric: FeatureQuality, trainer: Trainer, whose: str) -> dict[str, float]:
    """What was gathered, the first rank's numbers on every rank; a warning where it cannot be known."""
    values: dict[str, float] = trainer.strategy.broadcast(metric.compute())
    metric.reset()
    known = len(getattr(trainer, "datamodule").val_classes)  # noqa: B009 (for mypy)
    if values["knn1"] != values["knn1"]:
        rank_zero_warn(
            f"knn1 is not known of {whose}: its features are not all finite, or no class has two "
            "validation images, or all are of one class"
        )
    elif metric.classes < known:
        rank_zero_warn(
            f"{whose} was measured on images of {metric.classes} of {known} classes, the first ones that "
            "trainer.limit_val_batches leaves: kNN and linear top-1 are higher than among all, as chance is"
        )
    return values


def validates_all(trainer: Trainer) -> bool:
    """Whether validation goes through all images: 1 is one batch, 1.0 is all of them."""
    limit = trainer.limit_val_batches
    return isinstance(limit, float) and limit == 1.0


def batches_to_measure(trainer: Trainer, loader: Any) -> int | None:
    """How many of a loader's batches validation goes through on each rank; None for all.

    What stands beside a student's numbers is measured on the images that these are of.
    """
    limit = trainer.limit_test_batches if trainer.state.fn == "test" else trainer.limit_val_batches
    if isinstance(limit, int):
        return limit
    return None if limit == 1.0 else int(limit * len(loader))


def batches_of(trainer: Trainer, loader: Any, count: int | None, title: str) -> Iterator[Any]:
    """The first batches of a loader, in the trainer's precision, under a bar of the first rank."""
    shown = trainer.is_global_zero and trainer.progress_bar_callback is not None
    bar = tqdm(islice(loader, count), title.capitalize(), total=count, leave=False, disable=not shown)
    return map(trainer.precision_plugin.convert_input, bar)


@torch.no_grad()
def measure_features(
    features: Callable[[Tensor], Tensor], loader: Any, trainer: Trainer, whose: str
) -> dict[str, float]:
    """`FeatureQuality` of a loader's `batches_to_measure`, {} of none; `features` gives [B, D] of one."""
    if (count := batches_to_measure(trainer, loader)) == 0:
        return {}
    device, metric = trainer.strategy.root_device, FeatureQuality().to(trainer.strategy.root_device)
    with trainer.precision_plugin.forward_context():
        for images, targets, known in batches_of(trainer, loader, count, whose):
            metric.update(features(images.to(device)), targets.to(device), known["index"].to(device))
    return quality_of(metric, trainer, whose)
