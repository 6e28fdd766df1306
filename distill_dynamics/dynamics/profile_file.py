"""The file of a Profile: an .npz archive that plain numpy reads, and that a stranger may have written.

A curve [N, L] is the array `<name>_images`, its mean, where that is not computed, `<name>`; a curve [L] is
`<name>`, its standard error `<name>_se`; pairs of layers [L, M] are `<name>_pairs`. Which of them there are
stands in `meta`, a line of JSON. Letters: L layers, N images, M layers of another model.
"""

import json
import os
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray

from distill_dynamics.errors import UserError, first_line
from distill_dynamics.files import atomic_write, open_regular

SCHEMA = 3

_KIND = "distill_dynamics.Profile"
_META = ("model", "epoch", "layers", "range_mode", "bins", "probe_id", "schema")
_ARRAYS = ("value_range", "clipped", "blocks", "probe_indices")
_RANGES = ("global", "layer", "scaled", "explicit")

_CURVES_OF_2 = ("entropy", "magnitude", "peak", "median")
"""What schema 2 holds of each image."""

_MOST_LAYERS = 2_000
_MOST_CURVES = 200
_MOST_PACKED = 2**26
"""Bytes by which the arrays may be larger than their file: `write` packs nothing, a bomb is nothing else."""

LARGEST = 1e40
"""Measured in float32, no value is larger; figures of larger ones have no scale."""

P = TypeVar("P")


def may_be_named(name: str) -> bool:
    """Whether a curve of that name has arrays of its own in the file."""
    ends = ("_images", "_se", "_pairs")
    taken = name in ("meta", *_ARRAYS) or name.startswith("spectrum") or name.endswith(ends)
    return re.fullmatch(r"[a-z][a-z0-9_]{0,60}", name) is not None and not taken


def write(path: str | os.PathLike[str], fields: Mapping[str, Any]) -> None:
    """Write the fields of a Profile in one step; see `Profile.save`."""
    content: dict[str, Any] = {}
    for name, values in fields["curves"].items():
        content[f"{name}_images" if values.ndim == 2 else name] = values
    content |= fields["means"]
    content |= {f"{name}_se": values for name, values in fields["errors"].items()}
    content |= {f"{name}_pairs": values for name, values in fields["pairs"].items()}
    content |= {name: fields[name] for name in _ARRAYS if fields[name] is not None}
    for i, (mean, se) in enumerate(zip(fields["spectrum"], fields["spectrum_se"], strict=True)):
        content[f"spectrum_{i}"] = mean
        content[f"spectrum_se_{i}"] = se
    meta = {"kind": _KIND, **{name: fields[name] for name in _META}}
    if fields["student_width"] is not None:
        meta["student_width"] = fields["student_width"]
    meta["curves"] = {name: "images" if c.ndim == 2 else "set" for name, c in fields["curves"].items()}
    meta["pairs"] = [*fields["pairs"]]
    content["meta"] = np.array(json.dumps(meta))

    with atomic_write(path) as partial, partial.open("wb") as file:
        np.savez(file, **content)


def read(path: str | os.PathLike[str], make: Callable[[dict[str, Any]], P]) -> P:
    """What `make` makes of the fields of a Profile in a file, of schema 2 or 3; see `Profile.load`."""
    path = Path(path)
    try:
        with open_regular(path) as file:
            _check_size(file)
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile) or "meta" not in archive:
                raise UserError(f"{path}: not a Profile (expected a .npz file written by Profile.save)")
            meta = _meta(path, archive)
            layers = range(len(meta["layers"]))
            kinds, pairs = meta.pop("curves"), meta.pop("pairs")
            curves = _curves_of_2(archive) if meta["schema"] == 2 else _curves(archive, kinds)
            fields = {
                **meta,
                **curves,
                "pairs": {name: archive[f"{name}_pairs"] for name in pairs},
                "value_range": archive["value_range"],
                "clipped": archive["clipped"],
                "spectrum": [archive[f"spectrum_{i}"] for i in layers],
                "spectrum_se": [archive[f"spectrum_se_{i}"] for i in layers],
                "probe_indices": archive.get("probe_indices"),
                "blocks": archive.get("blocks", np.empty(0)),  # the first files of schema 2 have none
                "schema": SCHEMA,
            }
            profile = make(fields)
            _check_values(fields)
            return profile
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path}: no such Profile") from None
    except Exception as error:  # what a file that was cut or altered raises depends on where
        raise UserError(
            f"{path}: not a readable Profile, it may be cut short or be another kind of file "
            f"({first_line(error)})"
        ) from error


def _curves(archive: np.lib.npyio.NpzFile, kinds: Mapping[str, str]) -> dict[str, Any]:
    curves = {name: archive[f"{name}_images" if kind == "images" else name] for name, kind in kinds.items()}
    means = {name: archive[name] for name, kind in kinds.items() if kind == "images" and name in archive}
    errors = {name: archive[f"{name}_se"] for name in kinds if f"{name}_se" in archive}
    return {"curves": curves, "means": means, "errors": errors}


def _curves_of_2(archive: np.lib.npyio.NpzFile) -> dict[str, Any]:
    curves = {name: archive[f"{name}_images"] for name in _CURVES_OF_2}
    peaks, channel = np.asarray(curves["peak"], dtype=np.float64), archive["peak_channel"]
    if channel.shape != peaks.shape[1:]:
        raise ValueError(f"peak_channel has shape {channel.shape}")
    # Of each layer it names one channel, that of the image with the largest value.
    curves["peak_channel"] = np.full(peaks.shape, np.nan)
    if len(peaks):
        curves["peak_channel"][peaks.argmax(axis=0), np.arange(len(channel))] = channel
    return {"curves": curves, "means": {name: archive[name] for name in ("entropy", "magnitude")}}


def _meta(path: Path, archive: np.lib.npyio.NpzFile) -> dict[str, Any]:
    meta = json.loads(str(archive["meta"]))
    if not isinstance(meta, dict) or meta.pop("kind", None) != _KIND:
        raise UserError(f"{path}: not a Profile (expected a .npz file written by Profile.save)")
    schema = meta.get("schema")
    if type(schema) is not int or schema not in (2, SCHEMA):
        raise UserError(
            f"{path}: Profile schema {schema} is unknown to this version of distill_dynamics, which reads "
            f"schema 2 and {SCHEMA}: measure it again, or read it with the version that wrote it"
        )
    layers, epoch, curves, pairs = meta["layers"], meta["epoch"], meta.get("curves"), meta.get("pairs", [])
    width = meta.get("student_width")
    right = {
        "model": isinstance(meta["model"], str),
        "layers": isinstance(layers, list)
        and len(layers) > 0
        and all(isinstance(layer, str) for layer in layers),
        "epoch": epoch is None or (type(epoch) is int and 0 <= epoch < 2**31),
        "bins": type(meta["bins"]) is int and 0 < meta["bins"] < 2**31,
        "range_mode": meta["range_mode"] in _RANGES,
        "probe_id": isinstance(meta["probe_id"], str),
        "student_width": width is None or (type(width) is int and 0 < width < 2**31),
        "curves": schema == 2 or _are_curves(curves),
        "pairs": isinstance(pairs, list)
        and len(pairs) <= _MOST_CURVES
        and all(isinstance(name, str) and may_be_named(name) for name in pairs),
    }
    if wrong := [name for name, is_right in right.items() if not is_right]:
        raise ValueError(f"{wrong[0]} is {str(meta.get(wrong[0]))[:40]}")
    if len(layers) > _MOST_LAYERS:
        raise ValueError(f"{len(layers):,} layers")
    read = {name: meta[name] for name in _META}
    return read | {"curves": curves, "pairs": pairs, "student_width": width}


def _are_curves(curves: Any) -> bool:
    return (
        isinstance(curves, dict)
        and len(curves) <= _MOST_CURVES
        and all(may_be_named(name) and kind in ("images", "set") for name, kind in curves.items())
    )


def _check_size(file: BinaryIO) -> None:
    """Raises ValueError for a file that unpacks to far more than it is, and for a lone array."""
    if file.read(6) == b"\x93NUMPY":
        raise ValueError("one array")
    file.seek(0)
    with zipfile.ZipFile(file) as archive:
        unpacked = sum(member.file_size for member in archive.infolist())
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if unpacked > size + _MOST_PACKED:
        raise ValueError(f"{size:,} bytes unpack to {unpacked:,}")


def _check_values(fields: Mapping[str, Any]) -> None:
    """Raises ValueError for a number that nothing measures. Infinity is a measurement: of what diverged."""
    named: dict[str, list[NDArray]] = {name: [fields[name]] for name in ("value_range", "clipped")}
    named |= {"spectrum": fields["spectrum"], "spectrum_se": fields["spectrum_se"]}
    for by_name in ("curves", "means", "errors", "pairs"):
        named |= {name: [*named.get(name, []), values] for name, values in fields.get(by_name, {}).items()}
    for name, arrays in named.items():
        for values in arrays:
            values = np.asarray(values, dtype=np.float64)
            largest = np.abs(values, where=np.isfinite(values), out=np.zeros_like(values)).max(initial=0)
            if largest > LARGEST:
                raise ValueError(f"{name} holds {largest:.3g}")
    for name, values in fields["pairs"].items():
        if values.shape[1] > _MOST_LAYERS:
            raise ValueError(f"{name} is of {values.shape[1]:,} layers")
