"""What `analyze` is to analyse: models, their labels, and the files their weights are in."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from distill_dynamics.errors import UserError
from distill_dynamics.models.weights import completed_epochs


@dataclass(frozen=True)
class Model:
    """A model to analyse: what `Backbone` takes, and its name in tables and figures.

    `checkpoint` may also be several files or a pattern (`checkpoint_epoch_*.pth`): the same model at several
    epochs, an evolution.
    """

    name: str
    pretrained: bool = False
    checkpoint: str | Sequence[str] | None = None
    timm_kwargs: dict[str, Any] = field(default_factory=dict)
    label: str | None = None


class Weights(NamedTuple):
    """One set of a model's weights: a file (None: no file), and its place in an evolution."""

    checkpoint: str | None
    epoch: int | None = None
    """Completed epochs; None for a model that is no evolution."""
    best: bool = False

    @property
    def stem(self) -> str:
        """Name of its Profile's file."""
        return "best" if self.best else "model" if self.epoch is None else f"epoch_{self.epoch:04d}"


def labels(models: Sequence[Model]) -> dict[str, Model]:
    """Models by label: the given one, else timm's name, numbered (`-1`, `-2`) where several share it.

    Raises UserError for a label that two models have.
    """
    wanted = Counter(model.label or model.name for model in models)
    found: dict[str, Model] = {}
    taken: set[str] = set()
    for model in models:
        label = model.label or model.name
        if model.label is None and wanted[label] > 1:
            number = sum(other.name == model.name for other in found.values()) + 1
            label = f"{label}-{number}"
        if file_name(label) in taken:
            raise UserError(f"--model: two models are labelled {label!r}; give each a label of its own")
        taken.add(file_name(label))
        found[label] = model
    return found


def find_weights(model: Model) -> list[Weights]:
    """The weights of a model: those of one file, or an evolution, in the order of epochs, the best last.

    Several files, or a pattern, make an evolution. The epoch is what a file of `fit` says of itself, else the
    last number in the file's name; "best" in the name makes it the best checkpoint.

    Raises UserError where a pattern matches nothing, a file tells no epoch, or two tell the same.
    """
    if model.checkpoint is None:
        return [Weights(None)]
    given = [model.checkpoint] if isinstance(model.checkpoint, str) else list(model.checkpoint)
    if len(given) == 1 and not _is_pattern(given[0]):
        return [Weights(given[0])]
    if not given:
        raise UserError(f"checkpoint: no file is named for {model.name}")
    evolution: dict[tuple[bool, int | None], Weights] = {}
    for path in dict.fromkeys(path for pattern in given for path in _matches(pattern)):
        stem = Path(path).stem
        best = "best" in stem.lower() or Path(path).is_dir()  # a run's student/ is its best
        epoch = completed_epochs(path)
        if epoch is None and (numbers := re.findall(r"\d+", stem)):
            epoch = int(numbers[-1])
        if epoch is None and not best:
            raise UserError(
                f"checkpoint: {path} tells no epoch, neither in its content nor by a number in its name "
                "(as checkpoint_epoch_30.pth does), and is not called best"
            )
        key = (best, None if best else epoch)
        if key in evolution:
            which = "the best one" if best else f"of epoch {epoch}"
            raise UserError(f"checkpoint: {evolution[key].checkpoint} and {path} are both {which}; name one")
        evolution[key] = Weights(path, epoch, best)
    return sorted(evolution.values(), key=lambda weights: (weights.best, weights.epoch or 0))


def file_name(label: str) -> str:
    """A label as the name of a folder."""
    return re.sub(r"[^\w+.-]|^\.", "_", label)


def _is_pattern(path: str) -> bool:
    return bool(re.search(r"[*?[]", path)) and not os.path.exists(path)


def _matches(pattern: str) -> list[str]:
    if not _is_pattern(pattern):
        return [pattern]
    found = sorted(path for path in glob.glob(os.path.expanduser(pattern), recursive=True))
    if not found:
        raise UserError(f"checkpoint: no file matches {pattern}")
    return found
