"""Profile: what was measured on one model at one epoch, as a file.

The boundary between measuring (`profiler/`) and showing (`figures/`, `report/`): numpy arrays only, no torch.
Letters: L layers, N images, C_l channels of layer l.
"""

import json
import os
import re
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from distill_dynamics.errors import UserError, first_line
from distill_dynamics.files import open_regular, whole

SCHEMA = 2

_ARRAYS = (
    "entropy",
    "magnitude",
    "entropy_images",
    "magnitude_images",
    "peak_images",
    "median_images",
    "value_range",
    "clipped",
)
_META = ("model", "epoch", "layers", "range_mode", "bins", "probe_id", "schema")

_RANGES = ("global", "layer", "scaled", "explicit")

_MOST_LAYERS = 2_000
_MOST_PACKED = 2**26
"""Bytes by which the arrays may be larger than their file: `save` packs nothing, a bomb is nothing else."""

LARGEST = 1e40
"""Measured in float32, no value is larger; figures of larger ones have no scale."""

FloatArray = NDArray[np.float64]


@dataclass(eq=False)
class Profile:
    """Entropy, magnitude and spectrum of every layer of one model, over N images.

    Arrays are float64, whatever is passed in; a shape that does not fit the rest is a `ValueError`.
    Layers are in depth order. A curve that was published without its images has N = 0; what was not
    published with it is NaN, a spectrum of no length.
    """

    model: str
    """Name of the timm model."""
    epoch: int | None
    """Completed epochs: 0 is before training, None a model that is not in training."""
    layers: list[str]
    """Names of the layers (timm's `feature_info`), length L."""
    entropy: FloatArray = field(repr=False)
    """[L] bits, Eq. 5."""
    magnitude: FloatArray = field(repr=False)
    """[L] mean |A|, Eq. 6."""
    spectrum: list[FloatArray] = field(repr=False)
    """L arrays [C_l]: mean |F| at each frequency along the channels, Eq. 2."""
    entropy_images: FloatArray = field(repr=False)
    """[N, L] bits: Eq. 5 for each image alone."""
    magnitude_images: FloatArray = field(repr=False)
    """[N, L]: Eq. 6 for each image alone."""
    peak_images: FloatArray = field(repr=False)
    """[N, L]: the largest |A| of each image."""
    median_images: FloatArray = field(repr=False)
    """[N, L]: the median |A| of each image."""
    peak_channel: NDArray[np.int64] = field(repr=False)
    """[L] channel, from 0, of the layer's largest |A| over all images; -1 without images."""
    spectrum_se: list[FloatArray] = field(repr=False)
    """L arrays [C_l]: standard error of `spectrum` over images; NaN for one image."""
    value_range: FloatArray = field(repr=False)
    """[L, 2]: lowest and highest edge of each layer's entropy bins."""
    range_mode: str
    """Where `value_range` comes from: "global", "layer", "scaled" or "explicit"."""
    clipped: FloatArray = field(repr=False)
    """[L] fraction of values outside an explicit range, counted in the edge bins; else 0."""
    bins: int
    """Number of entropy bins."""
    probe_id: str = ""
    """Names the images, e.g. a hash of their pixels: equal ids mean comparable Profiles."""
    schema: int = SCHEMA
    """Version of the file format."""
    probe_indices: NDArray[np.int64] | None = field(default=None, repr=False)
    """[N] indices of the images in their data set, None where unknown."""
    blocks: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64), repr=False)
    """[L] numbers of the layers, from 1, among all of the model's. Left out: as named, else 1 to L."""

    def __post_init__(self) -> None:
        self.epoch = None if self.epoch is None else int(self.epoch)
        self.bins = int(self.bins)
        self.layers = [str(layer) for layer in self.layers]
        for name in _ARRAYS:
            setattr(self, name, np.asarray(getattr(self, name), dtype=np.float64))
        self.spectrum = [np.asarray(s, dtype=np.float64) for s in self.spectrum]
        self.spectrum_se = [np.asarray(s, dtype=np.float64) for s in self.spectrum_se]
        self.peak_channel = np.asarray(self.peak_channel, dtype=np.int64)
        if self.probe_indices is not None:
            self.probe_indices = np.asarray(self.probe_indices, dtype=np.int64)
        self.blocks = np.asarray(self.blocks if len(self.blocks) else _numbers(self.layers), dtype=np.int64)

        layers, images = len(self.layers), len(self.entropy_images)
        expected = {
            "entropy": (layers,),
            "magnitude": (layers,),
            "entropy_images": (images, layers),
            "magnitude_images": (images, layers),
            "peak_images": (images, layers),
            "median_images": (images, layers),
            "peak_channel": (layers,),
            "value_range": (layers, 2),
            "clipped": (layers,),
            "blocks": (layers,),
        }
        if self.probe_indices is not None:
            expected["probe_indices"] = (images,)
        for name, shape in expected.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"Profile.{name} has shape {getattr(self, name).shape}, expected {shape}")
        shapes = [s.shape for s in self.spectrum]
        if len(shapes) != layers or any(len(s) != 1 for s in shapes):
            raise ValueError(f"Profile.spectrum has shapes {shapes}, expected {layers} arrays [C_l]")
        if [s.shape for s in self.spectrum_se] != shapes:
            raise ValueError("Profile.spectrum_se must have the shapes of Profile.spectrum")

    @property
    def entropy_se(self) -> FloatArray:
        """[L] bits: standard error of `entropy` over images; NaN for one image."""
        return standard_error(self.entropy_images)

    @property
    def magnitude_se(self) -> FloatArray:
        """[L]: standard error of `magnitude` over images; NaN for one image."""
        return standard_error(self.magnitude_images)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one .npz file at `path`, exactly that name, replacing it in one step.

        A reader sees the old file or the new one, never half of one. Equal Profiles give equal
        bytes. A missing folder is made.
        """
        content: dict[str, Any] = {name: getattr(self, name) for name in (*_ARRAYS, "peak_channel", "blocks")}
        for i, (mean, se) in enumerate(zip(self.spectrum, self.spectrum_se, strict=True)):
            content[f"spectrum_{i}"] = mean
            content[f"spectrum_se_{i}"] = se
        if self.probe_indices is not None:
            content["probe_indices"] = self.probe_indices
        meta = {"kind": "distill_dynamics.Profile", **{name: getattr(self, name) for name in _META}}
        content["meta"] = np.array(json.dumps(meta))

        with whole(path) as partial, partial.open("wb") as file:
            np.savez(file, **content)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a file written by `save`; of one by a stranger nothing is executed, and no more is unpacked.

        Raises `UserError`, naming the file, where there is none, it is damaged, it is no Profile, or
        its schema is not known to this version.
        """
        path = Path(path)
        try:
            with open_regular(path) as file:
                _check_size(file)
                archive = np.load(file, allow_pickle=False)
                if not isinstance(archive, np.lib.npyio.NpzFile) or "meta" not in archive:
                    raise UserError(f"{path}: not a Profile (expected a .npz file written by Profile.save)")
                meta = _meta(path, archive)
                layers = range(len(meta["layers"]))
                arrays: dict[str, Any] = {name: archive[name] for name in (*_ARRAYS, "peak_channel")}
                profile = cls(
                    **meta,
                    **arrays,
                    spectrum=[archive[f"spectrum_{i}"] for i in layers],
                    spectrum_se=[archive[f"spectrum_se_{i}"] for i in layers],
                    probe_indices=archive.get("probe_indices"),
                    blocks=archive.get("blocks", np.empty(0)),  # files of earlier versions have none
                )
                _check_values(profile)
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


def standard_error(values: FloatArray) -> FloatArray:
    """[N, ...] one value an image → [...] standard error of their mean, s / √N; NaN for N = 1."""
    n = len(values)
    if n < 2:
        return np.full(values.shape[1:], np.nan)
    return values.std(axis=0, ddof=1) / np.sqrt(n)


def _numbers(layers: list[str]) -> NDArray[np.int64]:
    """Block numbers that go by the layers' names (a ViT's blocks.0), else 1 to L."""
    named = [re.fullmatch(r"blocks\.(\d+)", layer) for layer in layers]
    if all(named):
        return np.array([int(name[1]) + 1 for name in named if name], dtype=np.int64)
    return np.arange(1, len(layers) + 1)


def _meta(path: Path, archive: np.lib.npyio.NpzFile) -> dict:
    meta = json.loads(str(archive["meta"]))
    if not isinstance(meta, dict) or meta.pop("kind", None) != "distill_dynamics.Profile":
        raise UserError(f"{path}: not a Profile (expected a .npz file written by Profile.save)")
    if meta.get("schema") != SCHEMA:
        raise UserError(
            f"{path}: Profile schema {meta.get('schema')} is unknown to this version of distill_dynamics, "
            f"which reads schema {SCHEMA}: measure it again, or read it with the version that wrote it"
        )
    layers, epoch = meta["layers"], meta["epoch"]
    right = {
        "model": isinstance(meta["model"], str),
        "layers": isinstance(layers, list)
        and len(layers) > 0
        and all(isinstance(layer, str) for layer in layers),
        "epoch": epoch is None or (type(epoch) is int and 0 <= epoch < 2**31),
        "bins": type(meta["bins"]) is int and 0 < meta["bins"] < 2**31,
        "range_mode": meta["range_mode"] in _RANGES,
        "probe_id": isinstance(meta["probe_id"], str),
    }
    if wrong := [name for name, is_right in right.items() if not is_right]:
        raise ValueError(f"{wrong[0]} is {str(meta[wrong[0]])[:40]}")
    if len(layers) > _MOST_LAYERS:
        raise ValueError(f"{len(layers):,} layers")
    return {name: meta[name] for name in _META}


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


def _check_values(profile: Profile) -> None:
    """Raises ValueError for a number that nothing measures. Infinity is a measurement: of what diverged."""
    named = {name: [getattr(profile, name)] for name in _ARRAYS}
    named |= {"spectrum": profile.spectrum, "spectrum_se": profile.spectrum_se}
    for name, arrays in named.items():
        for values in arrays:
            if (
                largest := np.abs(values, where=np.isfinite(values), out=np.zeros_like(values)).max(initial=0)
            ) > LARGEST:
                raise ValueError(f"{name} holds {largest:.3g}")
