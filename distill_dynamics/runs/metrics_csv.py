"""`metrics.csv` of a run directory, one row an epoch: read and written here."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distill_dynamics.files import whole

PLACE = ("epoch", "step")
"""Columns that say which row it is."""

_OURS = (*PLACE, "train/", "val/", "teacher/", "dynamics/")


def read_rows(path: Path) -> tuple[list[dict[str, str]], int]:
    """The rows of a metrics.csv, cells as they are written, without empty ones; and how many are left out.

    Those are cut short or damaged: a cell too many or too few, no epoch, a metric of ours
    that is no number, and a last line without its end, whose last number may lack digits.
    """
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        header, *lines = list(csv.reader(text.splitlines())) or [[]]
    except csv.Error:
        return [], len(text.splitlines())
    rows: list[dict[str, str]] = []
    for number, cells in enumerate(lines, start=1):
        cut = number == len(lines) and not text.endswith(("\n", "\r"))
        try:
            row = {name: cell for name, cell in zip(header, cells, strict=True) if cell != ""}
            numbers = {name: float(cell) for name, cell in row.items() if name.startswith(_OURS)}
        except ValueError:
            continue
        if not cut and math.isfinite(numbers.get("epoch", math.nan)):
            rows.append(row)
    return rows, len(lines) - len(rows)


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Put rows in the place of a metrics.csv, in one step: `PLACE` first, the other columns by name."""
    columns = sorted({key for row in rows for key in row} - {*PLACE})
    with whole(path) as partial, partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*PLACE, *columns])
        writer.writeheader()
        writer.writerows(rows)
