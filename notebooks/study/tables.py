"""The study's numbers: from results/, a CSV a question in tables/, which figures and sentences are made of.

python notebooks/study/tables.py
"""

import csv
import math
from collections.abc import Sequence
from pathlib import Path

from accuracies import accuracy, contrasts, courses, runs, saving, setup
from curves import images, larger_input, ranges, shapes, spectra
from early import early
from evidence import Entry
from evolution import conflicts, ends, evolution
from real_vit_table import real_vit

TABLES = Path(__file__).parent / "tables"

TABLES_MADE = (
    setup,
    runs,
    accuracy,
    saving,
    contrasts,
    courses,
    shapes,
    ranges,
    larger_input,
    ends,
    evolution,
    conflicts,
    spectra,
    images,
    early,
    real_vit,
)


def write(folder: Path, name: str, entries: Sequence[Entry]) -> None:
    """One CSV; numbers to six significant digits, which are the same on another machine."""
    columns = list(dict.fromkeys(column for entry in entries for column in entry))
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        for entry in entries:
            writer.writerow({column: _cell(value) for column, value in entry.items()})


def _cell(value: object) -> object:
    if isinstance(value, float):
        return f"{value:.6g}" if math.isfinite(value) else ""
    return value


def main() -> None:
    """Make them all."""
    for table in TABLES_MADE:
        entries = list(table())
        write(TABLES, table.__name__, entries)
        print(f"{table.__name__}: {len(entries)} entries")


if __name__ == "__main__":
    main()
