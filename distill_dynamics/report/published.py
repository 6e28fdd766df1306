"""The layout in which entropy curves were published: one CSV file a method, one row an epoch, no images.

Model/Epoch,Layer_1,...,Layer_L
checkpoint_epoch_30,2.467,...      bits, Eq. 5
model_best,2.427,...
"""

import csv
import os
import re
from codecs import BOM_UTF8
from pathlib import Path

import numpy as np

from distill_dynamics.dynamics.profile import Profile
from distill_dynamics.errors import UserError
from distill_dynamics.files import open_regular
from distill_dynamics.runs.read import Unreadable, read_text


def is_published(path: str | os.PathLike[str]) -> bool:
    """Whether a file opens with the header of this layout."""
    try:
        with open_regular(path) as file:
            return file.readline(2000).removeprefix(BOM_UTF8).replace(b'"', b"").startswith(b"Model/Epoch,")
    except OSError:
        return False


def read_published(path: str | os.PathLike[str]) -> tuple[list[Profile], Profile | None, list[str]]:
    """Read one file → (a Profile an epoch, in their order; the best checkpoint's, if any; warnings).

    A Profile holds what was published, entropy by layer: it has no images (N = 0), NaN for the magnitude
    and a spectrum of no length. The best checkpoint's epoch is not published: None. Bins are taken for the
    paper's, 100 over the global range. A row that cannot be read is left out, with a warning.

    Raises `UserError` where the file has another header or no row that can be read.
    """
    path = Path(path)
    try:
        lines = read_text(path).removeprefix("\ufeff").splitlines() if is_published(path) else []
    except Unreadable as error:
        raise UserError(f"{path}: {error}") from error
    layers = _cells(lines[0])[1:] if lines else []
    if not layers:
        raise UserError(f"{path}: not a published entropy evolution (header Model/Epoch,Layer_1,...)")
    students: dict[int, Profile] = {}
    best, warnings = None, []
    for number, line in enumerate(lines[1:], start=2):
        if not line:
            continue
        name, *cells = _cells(line) or [""]
        epoch = re.fullmatch(r"checkpoint_epoch_(\d{1,9})", name.strip())
        values = _numbers(cells)
        if not epoch and name.strip() != "model_best":
            problem = f"{name!r} is neither checkpoint_epoch_<n> nor model_best"
        elif len(values) != len(layers):
            problem = f"{len(layers)} numbers are due, {len(values)} can be read"
        elif epoch and int(epoch[1]) in students:
            problem = f"epoch {int(epoch[1])} is there twice, the first one counts"
        elif not epoch and best is not None:
            problem = "model_best is there twice, the first one counts"
        elif epoch:
            students[int(epoch[1])] = _profile(path.stem, int(epoch[1]), layers, values)
            continue
        else:
            best = _profile(path.stem, None, layers, values)
            continue
        warnings.append(f"Line {number} of {path.name} is left out: {problem}.")
    if not students and best is None:
        raise UserError(
            f"{path}: no row can be read (expected checkpoint_epoch_<n> or model_best, then bits)"
        )
    return [students[epoch] for epoch in sorted(students)], best, warnings


def _cells(line: str) -> list[str]:
    """Of a line of CSV; none where a field is longer than the module csv takes."""
    try:
        return next(csv.reader([line]), [])
    except csv.Error:
        return []


def _numbers(cells: list[str]) -> list[float]:
    """Those of the cells that are numbers an entropy may be."""
    values = []
    for cell in cells:
        try:
            values.append(float(cell))
        except ValueError:
            continue
    return [value for value in values if abs(value) < 1e9]  # bits


def _profile(name: str, epoch: int | None, layers: list[str], entropy: list[float]) -> Profile:
    count = len(layers)
    no_image = np.empty((0, count))
    return Profile(
        model=name,
        epoch=epoch,
        layers=layers,
        curves={"entropy": no_image, "magnitude": no_image},
        means={"entropy": np.array(entropy)},
        spectrum=[np.empty(0)] * count,
        spectrum_se=[np.empty(0)] * count,
        value_range=np.full((count, 2), np.nan),
        range_mode="global",
        clipped=np.full(count, np.nan),
        bins=100,
    )
