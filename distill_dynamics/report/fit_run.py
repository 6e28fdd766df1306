"""Reading a run directory of `fit`, as far as it has come.

What cannot be read, or is not there yet, costs a sentence in `Run.warnings` and nothing else.
"""

import csv
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from distill_dynamics.dynamics.profile_file import LARGEST
from distill_dynamics.report.fit_warnings import fit_warnings
from distill_dynamics.report.methods import describe
from distill_dynamics.report.records import Run, fitting, left_out, range_name
from distill_dynamics.runs.metrics_csv import parse
from distill_dynamics.runs.profiles import RunProfiles, load_profiles, until_epoch
from distill_dynamics.runs.read import Unreadable, read_json, read_text, read_yaml
from distill_dynamics.text import listed


def read_fit(path: Path) -> Run:
    """Everything in the directory that can be read, and a sentence for each thing that cannot."""
    warnings: list[str] = []
    starts, config, metrics = _starts(path, warnings), _config(path, warnings), _metrics(path, warnings)
    profiles = _profiles(path, metrics, warnings)
    named, value_range = profiles.named(), ""
    if named:
        first = named[0][1]
        explicit = first.range_mode == "explicit"
        value_range = range_name(first.value_range[0].tolist() if explicit else first.range_mode)
    name = path.resolve().name
    run = Run(name, name, path, "fit", profiles, metrics, config, starts, range=value_range)
    return replace(run, warnings=[*warnings, *fit_warnings(run)])


def _starts(path: Path, warnings: list[str]) -> list[dict[str, Any]]:
    with suppress(Unreadable, KeyError, TypeError, AttributeError):
        starts = read_json(path / "run.json")["starts"]
        parts = [start.get(name) for start in starts for name in ("data", "versions", "ended")]
        if all(part is None or isinstance(part, dict) for part in parts):
            if not starts:
                warnings.append("Training has not begun: run.json records no start.")
            return starts
    warnings.append("run.json cannot be read: when, from what and how the run was started is not known.")
    return []


def _config(path: Path, warnings: list[str]) -> dict[str, Any]:
    file, reason = path / "config.yaml", ""
    if not file.exists():
        warnings.append("No configuration: there is no config.yaml.")
        return {}
    try:
        config = read_yaml(file)
        if all(isinstance(config.get(key) or {}, dict) for key in ("model", "data", "trainer", "probe")):
            describe(config)
            return config
    except Unreadable as error:
        reason = error.bound
    except (AttributeError, KeyError, TypeError, ValueError):
        pass
    warnings.append(f"No configuration: config.yaml is not the configuration of a run{reason}.")
    return {}


_MOST_EPOCHS = 20_000


def _metrics(path: Path, warnings: list[str]) -> list[dict[str, float]]:
    """The rows of metrics.csv, one an epoch, without empty cells and without those that were cut short."""
    file = path / "metrics.csv"
    if not file.exists():
        return []
    try:
        columns, lines = parse(read_text(file).removeprefix("\ufeff"))
    except (Unreadable, csv.Error) as error:
        bound = error.bound if isinstance(error, Unreadable) else ""
        warnings.append(f"metrics.csv cannot be read{bound}.")
        return []
    words = [name for name in columns if _is_text(name, lines)]
    rows = []
    for cells in lines:
        with suppress(ValueError):
            row = {name: _number(cell) for name, cell in (cells or {}).items() if name not in words}
            if 0 <= row.get("epoch", -1) <= _MOST_EPOCHS:
                rows.append(row)
    if len(rows) > _MOST_EPOCHS:
        warnings.append(f"metrics.csv cannot be read ({len(rows):,} rows).")
        return []
    if broken := len(lines) - len(rows):
        some = "1 row" if broken == 1 else f"{broken} rows"
        warnings.append(f"metrics.csv: {some} cut short or damaged, left out.")
    if words:
        warnings.append(f"metrics.csv: text in the place of numbers, left out: {listed(words)}.")
    return rows


def _is_text(name: str, rows: Sequence[Mapping[str, str] | None]) -> bool:
    """Whether a column has entries, none of them a number."""
    cells = [row[name] for row in rows if row is not None and name in row]
    for cell in cells:
        with suppress(ValueError):
            _number(cell)
            return False
    return bool(cells)


def _number(cell: str) -> float:
    """Raises ValueError for what is none, and for what no training measures in float32."""
    value = float(cell)
    if LARGEST < abs(value) < math.inf:
        raise ValueError(cell)
    return value


def _profiles(path: Path, metrics: list[dict[str, float]], warnings: list[str]) -> RunProfiles:
    """Those that can be read, fit one another, and are not of a part of the training that is run again."""
    unreadable: dict[str, list[str]] = {}
    profiles = load_profiles(path / "dynamics", unreadable)
    warnings += left_out(unreadable)
    profiles = fitting(*profiles[:3], warnings)._replace(others=profiles.others)
    if not metrics:
        return profiles
    reached = max(row["epoch"] for row in metrics)
    known = until_epoch(profiles, reached)
    if len(known.students) < len(profiles.students):
        warnings.append(
            f"Profiles go on to epoch {profiles.students[-1].epoch}, metrics.csv ends at {reached:g}: the "
            "run was continued from an earlier epoch, and those of the part that is run again are left out."
        )
    return known
