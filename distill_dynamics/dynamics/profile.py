"""Profile: what was measured on one model at one epoch.

The boundary between measuring (`profiler/`) and showing (`figures/`, `report/`): numpy arrays only, no torch.
Letters: L layers, N images, C_l channels of layer l.
"""

import os
import re
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from distill_dynamics.dynamics import profile_file

FloatArray = NDArray[np.float64]


@dataclass(eq=False)
class Profile:
    """Curves by block and channel spectra of one model, over N images.

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
    curves: dict[str, FloatArray] = field(repr=False)
    """By name (`dynamics/statistics.py`): [N, L] a value an image, such as "entropy" (bits, Eq. 5) and
    "magnitude" (mean |A|, Eq. 6), which are always there; [L] a value of all images at once, such as
    "effective_rank". Files of earlier versions lack some."""
    spectrum: list[FloatArray] = field(repr=False)
    """L arrays [C_l]: mean |F| at each frequency along the channels, Eq. 2."""
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
    schema: int = profile_file.SCHEMA
    """Version of the file format."""
    probe_indices: NDArray[np.int64] | None = field(default=None, repr=False)
    """[N] indices of the images in their data set, None where unknown."""
    blocks: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64), repr=False)
    """[L] numbers of the layers, from 1, among all of the model's. Left out: as named, else 1 to L."""
    means: dict[str, FloatArray] = field(default_factory=dict, repr=False)
    """[L] of curves [N, L] whose mean over images was published or saved; left out: it is computed."""
    errors: dict[str, FloatArray] = field(default_factory=dict, repr=False)
    """[L] standard errors over images of curves [L]; of those [N, L] they are computed."""
    pairs: dict[str, FloatArray] = field(default_factory=dict, repr=False)
    """By name, such as "cka": [L, M] a value of each layer with each of the M layers of the teacher."""
    student_width: int | None = None
    """Channels of the student at which "capacity_floor" and "correlation_floor" are; None without them."""

    def __post_init__(self) -> None:
        self.epoch = None if self.epoch is None else int(self.epoch)
        self.bins = int(self.bins)
        self.student_width = None if self.student_width is None else int(self.student_width)
        self.layers = [str(layer) for layer in self.layers]
        for by_name in ("curves", "means", "errors", "pairs"):
            setattr(self, by_name, {name: _floats(values) for name, values in getattr(self, by_name).items()})
        self.value_range, self.clipped = _floats(self.value_range), _floats(self.clipped)
        self.spectrum, self.spectrum_se = [*map(_floats, self.spectrum)], [*map(_floats, self.spectrum_se)]
        if self.probe_indices is not None:
            self.probe_indices = np.asarray(self.probe_indices, dtype=np.int64)
        self.blocks = np.asarray(self.blocks if len(self.blocks) else _numbers(self.layers), dtype=np.int64)
        self._check()

    def _check(self) -> None:
        for name in ("entropy", "magnitude"):
            if name not in self.curves:
                raise ValueError(f"Profile.curves lacks {name}")
        layers, images = len(self.layers), len(self.curves["entropy"])
        known = {"value_range": self.value_range, "clipped": self.clipped, "blocks": self.blocks}
        expected = {"value_range": (layers, 2), "clipped": (layers,), "blocks": (layers,)}
        if self.probe_indices is not None:
            known["probe_indices"], expected["probe_indices"] = self.probe_indices, (images,)
        for name, values in self.curves.items():
            if not profile_file.may_be_named(name):
                raise ValueError(f"Profile.curves has {name!r}, which cannot be the name of one")
            one_an_image = values.ndim == 2 or name in ("entropy", "magnitude")
            known[name], expected[name] = values, (images, layers) if one_an_image else (layers,)
        others = {values.shape[1] if values.ndim == 2 else 0 for values in self.pairs.values()}
        for name, values in self.pairs.items():
            if not profile_file.may_be_named(name) or name in self.curves:
                raise ValueError(f"Profile.pairs has {name!r}, which cannot be the name of one")
            known[name], expected[name] = values, (layers, max(*others, 1))
        for by_name in ("means", "errors"):
            for name, values in getattr(self, by_name).items():
                if name not in self.curves:
                    raise ValueError(f"Profile.{by_name} has {name}, and Profile.curves has not")
                known[f"{by_name}: {name}"], expected[f"{by_name}: {name}"] = values, (layers,)
        for name, shape in expected.items():
            if known[name].shape != shape:
                raise ValueError(f"Profile.{name} has shape {known[name].shape}, expected {shape}")
        shapes = [s.shape for s in self.spectrum]
        if len(shapes) != layers or any(len(s) != 1 for s in shapes):
            raise ValueError(f"Profile.spectrum has shapes {shapes}, expected {layers} arrays [C_l]")
        if [s.shape for s in self.spectrum_se] != shapes:
            raise ValueError("Profile.spectrum_se must have the shapes of Profile.spectrum")

    def curve(self, name: str) -> FloatArray:
        """[L] a curve over depth: the mean over images, or what was measured on all of them at once.

        Of pairs of layers [L, M] it is each layer's with the teacher's at equal depth, the first with the
        first and the last with the last. NaN where it was not measured.
        """
        if name in self.pairs:
            of_pairs = self.pairs[name]
            layers = np.arange(len(of_pairs))
            return of_pairs[layers, np.rint(np.linspace(0, of_pairs.shape[1] - 1, len(of_pairs))).astype(int)]
        values = self.means.get(name, self.curves.get(name))
        if values is None:
            return np.full(len(self.layers), np.nan)
        if values.ndim == 1:
            return values
        return values.mean(axis=0) if len(values) else np.full(len(self.layers), np.nan)

    def curve_se(self, name: str) -> FloatArray:
        """[L] standard error of a curve over images; NaN where it is unknown, as for one image."""
        values = self.curves.get(name)
        if values is not None and values.ndim == 2:
            return standard_error(values)
        return self.errors.get(name, np.full(len(self.layers), np.nan))

    def known(self, name: str) -> bool:
        """Whether a curve has a number anywhere."""
        return bool(np.isfinite(self.curve(name)).any())

    @property
    def entropy(self) -> FloatArray:
        """[L] bits, Eq. 5."""
        return self.curve("entropy")

    @property
    def entropy_images(self) -> FloatArray:
        """[N, L] bits: Eq. 5 for each image alone."""
        return self.curves["entropy"]

    @property
    def entropy_se(self) -> FloatArray:
        """[L] bits: standard error of `entropy` over images; NaN for one image."""
        return self.curve_se("entropy")

    @property
    def magnitude(self) -> FloatArray:
        """[L] mean |A|, Eq. 6."""
        return self.curve("magnitude")

    @property
    def magnitude_images(self) -> FloatArray:
        """[N, L]: Eq. 6 for each image alone."""
        return self.curves["magnitude"]

    @property
    def magnitude_se(self) -> FloatArray:
        """[L]: standard error of `magnitude` over images; NaN for one image."""
        return self.curve_se("magnitude")

    @property
    def peak_channel(self) -> NDArray[np.int64]:
        """[L] channel, from 0, of the layer's largest |A| over all images; -1 where unknown."""
        peaks, channels = self.curves.get("peak"), self.curves.get("peak_channel")
        if peaks is None or channels is None or not len(peaks):
            return np.full(len(self.layers), -1)
        found = channels[peaks.argmax(axis=0), np.arange(len(self.layers))]
        return np.where(np.isfinite(found), found, -1).astype(np.int64)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one .npz file at `path`, exactly that name, replacing it in one step.

        A reader sees the old file or the new one, never half of one. Equal Profiles give equal
        bytes. A missing folder is made.
        """
        profile_file.write(path, {name: getattr(self, name) for name in self.__dataclass_fields__})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a file written by `save`; of one by a stranger nothing is executed, and no more is unpacked.

        Raises `UserError`, naming the file, where there is none, it is damaged, it is no Profile, or
        its schema is not known to this version.
        """
        return profile_file.read(path, lambda fields: cls(**fields))


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


def _floats(values: Any) -> FloatArray:
    return np.ascontiguousarray(values, dtype=np.float64)
