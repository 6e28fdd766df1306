"""The CSV file that `predict` writes."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill_dynamics.errors import UserError
from distill_dynamics.files import atomic_write


def write_rows(file: Any, batches: Sequence[tuple[Tensor, Tensor]], classes: Sequence[str]) -> int:
    """Write a row an image, of batches of probabilities [B, K] and targets [B]; how many images there are."""
    writer = csv.writer(file)
    writer.writerow(["image", "target", "prediction", "probability"])
    targets = torch.cat([targets for _, targets in batches]).tolist()
    rows = torch.cat([probabilities for probabilities, _ in batches])
    for image, (target, row) in enumerate(zip(targets, rows, strict=True)):
        names = [classes[number] for number in (target, int(row.argmax()))]
        writer.writerow([image, *names, f"{row.max():.4f}"])
    return len(targets)


@contextmanager
def written_at_the_end(path: Path) -> Iterator[Any]:
    """A text file that takes the place of the one at `path` when the block ends, not after an error in it."""
    path = path.resolve()  # the file that a link leads to, not the link
    if path.exists() and not path.is_file():  # a pipe, /dev/stdout
        with path.open("w", newline="") as file:
            yield file
        return
    if not path.parent.is_dir():
        raise UserError(f"--predictions: there is no folder {path.parent}")
    with atomic_write(path) as partial, partial.open("w", newline="") as file:
        yield file
