"""`analyze --knn`: how good a model's features are, by labelled images, without training it.

Letters: M images of the bank, N queries, D features.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from distill_dynamics.analysis.tables import Curve
from distill_dynamics.data.analysis_images import ImageSet, ImageStream
from distill_dynamics.data.image_folder import labelled_images
from distill_dynamics.data.sources import FileSource
from distill_dynamics.data.transforms import eval_transform
from distill_dynamics.dynamics.measures.feature_quality import feature_quality, halves
from distill_dynamics.errors import UserError
from distill_dynamics.models.backbone import Backbone
from distill_dynamics.models.eval_transform import EvalTransform
from distill_dynamics.models.features import POOLED, read
from distill_dynamics.models.isolated import isolated
from distill_dynamics.tables import aligned, quality_caption, quality_rows

_KNN = "--knn"


class Labelled(NamedTuple):
    """Images with classes: a bank, and queries that it classifies."""

    name: str
    source: FileSource
    indices: NDArray[np.int64]
    """[M + N] of those that can be read."""
    in_bank: NDArray[np.bool_]
    """[M + N]"""
    classes: int

    @property
    def facts(self) -> dict[str, Any]:
        """For `analysis.json`."""
        bank = int(self.in_bank.sum())
        return {
            "source": self.name,
            "bank": bank,
            "queries": len(self.in_bank) - bank,
            "classes": self.classes,
        }


def labelled(path: str | os.PathLike, skip_unreadable: bool, num_workers: int) -> Labelled:
    """Those of a folder: DIR/train/<class> is the bank and DIR/val/<class> are queries; else `halves`.

    Raises UserError where it holds no classes, a query's class is not in the bank, or no query is left.
    """
    if not os.fspath(path):
        raise UserError(f"{_KNN}: an empty path; name a folder with train/ and val/, or of class folders")
    root = Path(path).expanduser()
    splits = [root / name for name in ("train", "val")]
    there = [split for split in splits if split.is_dir()]
    if len(there) == 1:
        raise UserError(
            f"{_KNN}: {root} has {there[0].name}/ alone; give both, or the folder of classes itself"
        )
    if there:
        (classes, bank), (asked, queries) = (labelled_images(split, _KNN) for split in splits)
        if lacking := sorted(set(asked) - set(classes)):
            raise UserError(f"{_KNN}: {splits[1]} has a class {lacking[0]}, which {splits[0]} has not")
        targets = [*bank.targets, *(classes.index(asked[target]) for target in queries.targets)]
        names = [
            os.path.join(split.name, os.fsdecode(name))
            for split, source in zip(splits, (bank, queries), strict=True)
            for name in source.names
        ]
        source, count = FileSource(root, names, targets), len(bank.targets)
    else:
        classes, source = labelled_images(root, _KNN)
        count = None
    every = ImageSet(source, str(root), {}, skip_unreadable)
    indices = np.sort(every.draw(None, 0, num_workers))
    parted = halves(torch.as_tensor(source.targets[indices])).numpy()
    in_bank = parted if count is None else indices < count
    if len(classes) < 2 or in_bank.all() or not in_bank.any():
        raise UserError(
            f"{_KNN}: {root} has {len(indices)} images of {len(classes)} classes; two classes are needed, "
            "and two images of one of them: one half classifies the other"
        )
    return Labelled(str(root), source, indices, in_bank, len(classes))


def quality_of(
    backbone: Backbone, evaluation: EvalTransform, images: Labelled, batch_size: int, num_workers: int
) -> dict[str, float]:
    """`feature_quality` of a model's pooled features, under a transform of evaluation."""
    to_pixels = eval_transform(*evaluation, border=backbone.mean)
    stream = ImageStream(
        images.source,
        images.indices,
        to_pixels,
        backbone.mean,
        backbone.std,
        batch_size=batch_size,
        num_workers=num_workers,
    )
    device = next(backbone.parameters()).device
    features: list[Tensor] = []
    with isolated(backbone):
        for batch in tqdm(stream, "kNN", disable=None, leave=False):
            features.append(read(backbone, batch.to(device), {POOLED})[POOLED].cpu())
    found, targets = torch.cat(features), torch.as_tensor(images.source.targets[images.indices])
    bank = torch.as_tensor(images.in_bank)
    return feature_quality(found[bank], targets[bank], found[~bank], targets[~bank])


def quality_row(curve: Curve) -> dict[str, Any]:
    """A row of quality.csv."""
    facts = ("label", "model", "checkpoint", "epoch", "best")
    return {**{name: curve.facts[name] for name in facts}, **curve.quality}


def printed_quality(named: Mapping[str, Mapping[str, float]], images: Labelled) -> str:
    """The table for a terminal."""
    lines = [*aligned(quality_rows(named.items())), quality_caption(images.facts)]
    return "\n".join(f"  {line}" for line in lines)
