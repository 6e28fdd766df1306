"""`metrics.csv` of a run directory, one row an epoch: read and written here."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distill_dynamics.files import atomic_write

PLACE = ("epoch", "step")
"""Columns that say which row it is."""

_OURS = (*PLACE, "train/", "val/", "teacher/", "teacher_", "dynamics/")


def parse(text: str) -> tuple[list[str], list[dict[str, str] | None]]:
    """The columns of a metrics.csv, and each row's cells by column, as they are written, without empty ones.

    None stands for a row that is cut short: a cell too many or too few, or a last line without its end, whose
    last number may lack digits. Raises csv.Error.
    """
    header, *lines = list(csv.reader(text.splitlines())) or [[]]
    rows: list[dict[str, str] | None] = [
        {name: cell for name, cell in zip(header, cells, strict=True) if cell != ""}
        if len(cells) == len(header)
        else None
        for cells in lines
    ]
    if rows and not text.endswith(("\n", "\r")):
        rows[-1] = None
    return header, rows


def read_rows(path: Path) -> tuple[list[dict[str, str]], int]:
    """The rows of a metrics.csv as `parse` gives them, and how many are left out.

    Those are cut short or damaged: they have no epoch, or a metric of ours that is no number.
    """
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        _, parsed = parse(text)
    except csv.Error:
        return [], len(text.splitlines())
    rows = [row for row in parsed if row is not None and _is_whole(row)]
    return rows, len(parsed) - len(rows)


def _is_whole(row: Mapping[str, str]) -> bool:
    try:
        numbers = {name: float(cell) for name, cell in row.items() if name.startswith(_OURS)}
    except ValueError:
        return False
    return math.isfinite(numbers.get("epoch", math.nan))


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Put rows in the place of a metrics.csv, in one step: `PLACE` first, the other columns by name."""
    columns = sorted({key for row in rows for key in row} - {*PLACE})
    with atomic_write(path) as partial, partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*PLACE, *columns])
        writer.writeheader()
        writer.writerows(rows)
