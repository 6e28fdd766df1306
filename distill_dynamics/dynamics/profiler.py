"""A backbone and images → Profile.

Letters: B images of one batch, N images in all, n images of this process, C channels, H W grid, L layers.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, Literal, Protocol, TypeVar, get_args

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import ArrayLike
from torch import Tensor, nn
from tqdm import tqdm

from distill_dynamics.dynamics.measures.entropy import channel_entropy
from distill_dynamics.dynamics.measures.magnitude import image_magnitudes
from distill_dynamics.dynamics.measures.spectrum import image_spectra
from distill_dynamics.dynamics.profile import FloatArray, Profile
from distill_dynamics.errors import UserError
from distill_dynamics.models.isolated import isolated
from distill_dynamics.models.layers import resolve_layers

T = TypeVar("T")
RangeMode = Literal["global", "layer", "scaled"]
ValueRange = RangeMode | Sequence[float]

PADDING = -100
"""Target of an image that only fills up a batch; such an image is left out."""

CPU_VALUES = 8 * 3 * 224 * 224
"""Pixel values of one forward pass on a CPU; a larger batch goes through in parts, which is faster.

(CaiT-S24, 32 images: 9.5 s in parts of 8, 13.5 s at once; much of the rest is the system handing out memory
for attention maps of 40 MB each.)"""


class Layered(Protocol):
    """What `profile_model` needs of a backbone; `distill_dynamics.Backbone` is one."""

    name: str
    layers: list[str]
    channels: list[int]

    def __call__(self, images: Tensor, layers: Sequence[int] | Literal["all"], logits: bool) -> Any:
        """Give an object whose `.maps` is the list of [B, C, H, W] of the layers asked for."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Parameters: the first one says which device and which precision the images must have."""


def profile_model(
    backbone: Layered,
    images: Tensor | Iterable,
    *,
    bins: int = 100,
    value_range: ValueRange = "global",
    layers: Sequence[int] | Literal["all"] = "all",
    batch_size: int = 32,
    epoch: int | None = None,
    probe_id: str = "",
    probe_indices: ArrayLike | None = None,
    group: dist.ProcessGroup | None = None,
    progress: bool = False,
) -> Profile:
    """Measure entropy, spectrum, magnitude and massive activations of every layer over all images.

    The result is that of the whole set in one batch, round-off aside, but the images stream: held at
    any moment are the activations of one batch, and one number an image, layer and measure.

    What it costs: the measures take a fourteenth of a forward pass of CaiT-S24 on a CPU. The bins must span
    all images before the first value is counted, so unless `value_range` is two numbers the images are run
    through the model **twice** when they come in several batches. They are run once when they fit in
    one batch, whose activations are kept (the default: 32 probe images). On a CPU a batch goes through
    the model in parts of 8 images of 224 px.

    The model runs in eval mode, float32 (its own precision if its parameters have another), without
    autocast, gradients or compilation. Training flags and the random states of Python, numpy and torch
    are put back, also after an error.

    Args:
        backbone: a `Backbone`.
        images: normalised for this backbone. A tensor [N, C_in, H_in, W_in], or an iterable of batches:
            tensors, or (images, targets) pairs, whose images with target -100 are left out. An iterable
            may be asked for its batches twice and must give the same ones, so no shuffling and no random
            augmentation; an iterator that can be read only once will do for a single batch or pass.
        bins: number of equal bins of the entropy.
        value_range: the range the bins divide. "global" is the paper's: lowest and highest value over
            all layers and images, so that one outlier widens every layer's bins. "layer": each layer's
            own. "scaled": one range for all layers, each divided by its magnitude first, which leaves
            of the entropy what is not the layer's scale. Two numbers (lo, hi): these, for every layer,
            with values outside counted in the bins at the ends and their fraction kept as
            `Profile.clipped`.
        layers: "all", or numbers from 1, negative from the end; the Profile has them in depth order.
        batch_size: images whose activations are held at a time, where `images` is a tensor.
        epoch, probe_id, probe_indices: passed on to the Profile; `probe_indices` is [N].
        group: a process group whose ranks all make this call. `images` are then this rank's share,
            image i of the whole set being on rank i mod world size, in order; a share may be empty. Every
            rank returns the Profile of the whole set, and an error on one rank is raised on all.
        progress: show a bar where there is more than one batch.

    Raises:
        UserError: NaN or Inf in a layer's output, which it names; no images; images of a wrong shape or
            kind; images that cannot be read a second time, or differ then; a range that is none.
    """
    (profile,) = profile_ranges(
        backbone,
        images,
        value_ranges=[value_range],
        bins=bins,
        layers=layers,
        batch_size=batch_size,
        epoch=epoch,
        probe_id=probe_id,
        probe_indices=probe_indices,
        group=group,
        progress=progress,
    )
    return profile


def profile_ranges(
    backbone: Layered,
    images: Tensor | Iterable,
    *,
    value_ranges: Sequence[ValueRange],
    bins: int = 100,
    layers: Sequence[int] | Literal["all"] = "all",
    batch_size: int = 32,
    epoch: int | None = None,
    probe_id: str = "",
    probe_indices: ArrayLike | None = None,
    group: dist.ProcessGroup | None = None,
    progress: bool = False,
) -> list[Profile]:
    """`profile_model` under several value ranges: a Profile each, for the forward passes of one.

    The Profiles differ in entropy, `value_range`, `range_mode` and `clipped` alone. Arguments and
    errors are those of `profile_model`.
    """
    if bins < 1:
        raise UserError(f"bins must be at least 1, not {bins}")
    numbers = sorted(set(resolve_layers(layers, len(backbone.layers), backbone.name)))
    if not numbers:
        raise UserError(
            f"{backbone.name}: no layers to analyse (layers: {layers!r}, it has {backbone.layers})"
        )
    if not value_ranges:
        raise UserError("value_ranges names no range: give at least one")
    edges = [_given_range(value_range, len(numbers)) for value_range in value_ranges]
    given = [limits for limits in edges if limits is not None]
    modes = [
        "explicit" if limits is not None else str(r) for limits, r in zip(edges, value_ranges, strict=True)
    ]
    run = _Run(backbone, images, batch_size, numbers, bins, progress, again=len(given) < len(edges))

    with isolated(backbone):
        looks = _on_every_rank(lambda: run.look(given), group)
        counts = [len(look.values) for look in looks]
        count = sum(counts)
        if count == 0:
            raise UserError(f"{backbone.name}: there are no images to analyse")
        if counts != [len(range(rank, count, len(counts))) for rank in range(len(counts))]:
            raise UserError(
                f"{backbone.name}: image i of {count} must be on rank i mod {len(counts)}, but the ranks "
                f"have {counts} images"
            )
        values = _interleave([look.values for look in looks])
        magnitude, median, peak, channel = np.moveaxis(values[..., :4], 2, 0)
        measured = [_edges(looks, magnitude.mean(axis=0), mode) for mode in modes if mode != "explicit"]
        seconds = _on_every_rank(lambda: run.entropies(measured), group) if measured else []

    if probe_indices is not None and np.shape(probe_indices) != (count,):
        raise UserError(f"probe_indices has shape {np.shape(probe_indices)} and there are {count} images")
    spectra = [reduce(_Moments.add, parts) for parts in zip(*(look.spectra for look in looks), strict=True)]

    # Each of these three has one entry a range, in the order of value_ranges.
    first = iter([*np.moveaxis(values[..., 4 : 4 + len(given)], 2, 0)])
    second = iter([*np.moveaxis(_interleave(seconds), 2, 0)] if seconds else [])
    entropies = [next(first if mode == "explicit" else second) for mode in modes]
    outside = iter([*values[..., 4 + len(given) :].mean(axis=0).T])
    clipped = [next(outside) if mode == "explicit" else np.zeros(len(numbers)) for mode in modes]
    found = iter(measured)
    limits = [next(found) if known is None else known for known in edges]
    return [
        Profile(
            model=backbone.name,
            epoch=epoch,
            layers=[backbone.layers[number - 1] for number in numbers],
            entropy=entropies[i].mean(axis=0),
            magnitude=magnitude.mean(axis=0),
            spectrum=[moments.mean for moments in spectra],
            entropy_images=entropies[i],
            magnitude_images=magnitude,
            peak_images=peak,
            peak_channel=channel[peak.argmax(axis=0), np.arange(len(numbers))],
            median_images=median,
            spectrum_se=[moments.standard_error() for moments in spectra],
            value_range=limits[i],
            range_mode=mode,
            clipped=clipped[i],
            bins=bins,
            probe_id=probe_id,
            probe_indices=None if probe_indices is None else np.asarray(probe_indices),
            blocks=np.array(numbers),
        )
        for i, mode in enumerate(modes)
    ]


@dataclass
class _Moments:
    """Mean and summed squared deviation of n vectors [C], merged without cancellation (Chan et al., 1979)."""

    n: int
    mean: FloatArray
    squares: FloatArray

    @classmethod
    def of(cls, values: FloatArray) -> "_Moments":
        mean = values.mean(axis=0)
        return cls(len(values), mean, ((values - mean) ** 2).sum(axis=0))

    def add(self, other: "_Moments") -> "_Moments":
        """Take the other's vectors in; in place, see `_Rows`."""
        if other.n:
            n = self.n + other.n
            step = other.mean - self.mean
            self.mean += step * (other.n / n)
            self.squares += other.squares + step**2 * (self.n * other.n / n)
            self.n = n
        return self

    def standard_error(self) -> FloatArray:
        if self.n < 2:
            return np.full_like(self.mean, np.nan)
        return np.sqrt(self.squares / (self.n - 1) / self.n)


class _Rows:
    """A row for each image, in the order they come, in one block of memory that doubles when it is full.

    Not a list, nor arrays joined again and again: what outlives a batch and is allocated during it lands
    between the activations and leaves holes in the heap that the next batch does not fit into.
    """

    def __init__(self, *shape: int) -> None:
        self._block = np.empty((64, *shape))
        self.n = 0

    def add(self, rows: FloatArray) -> None:
        if self.n + len(rows) > len(self._block):
            larger = np.empty((2 * (self.n + len(rows)), *self._block.shape[1:]))
            larger[: self.n] = self._block[: self.n]
            self._block = larger
        self._block[self.n : self.n + len(rows)] = rows
        self.n += len(rows)

    def all(self) -> FloatArray:
        return self._block[: self.n]


@dataclass
class _Look:
    """What n images tell of each of the L layers."""

    low: FloatArray
    """[L] lowest value; inf where there is no image."""
    high: FloatArray
    """[L] highest value; -inf where there is no image."""
    spectra: list[_Moments]
    values: FloatArray
    """[n, L, 4 + 2 G]: magnitude, median, largest magnitude and its channel; for each of the G ranges
    that were given beforehand the entropy; for each of them the fraction of values outside."""


@dataclass
class _Run:
    """The forward passes of one process."""

    backbone: Layered
    images: Tensor | Iterable
    batch_size: int
    numbers: list[int]
    bins: int
    progress: bool
    again: bool
    """Whether some range has to be measured before values can be counted."""
    held: list[list[Tensor]] = field(default_factory=list)
    """Activations of the latest batch: for each part of it, the L maps [part of B, C, H, W]."""
    pixel_sums: _Rows = field(default_factory=_Rows)
    """One number an image of the first pass: a second pass that sees other images is found out by them."""
    batches: int = 0
    """Of the first pass."""

    def look(self, given: list[FloatArray]) -> _Look:
        """First pass; entropies too, for the ranges that are known beforehand."""
        channels = [self.backbone.channels[number - 1] for number in self.numbers]
        low, high = np.full(len(channels), np.inf), np.full(len(channels), -np.inf)
        spectra = [_Moments(0, np.zeros(c), np.zeros(c)) for c in channels]
        values = _Rows(len(channels), 4 + 2 * len(given))
        for images in self._batches("magnitude and spectrum"):
            if self.batches == 1 and self.again and isinstance(self.images, Iterator):
                raise UserError(
                    f"images can be read only once ({type(self.images).__name__}) and must be read twice: "
                    "give a list of batches, a DataLoader, a tensor, or two numbers as value_range"
                )
            self.batches += 1
            self.pixel_sums.add(_pixel_sums(images))
            self._forward(images)
            self._look_at_held(given, low, high, spectra, values)
        return _Look(low, high, spectra, values.all())

    def entropies(self, edges: list[FloatArray]) -> FloatArray:
        """[n, L, edges]: from the activations at hand if these are of all images, else by a second pass."""
        rows = _Rows(len(self.numbers), len(edges))
        if self.batches == 1:
            self._count_held(edges, rows)
            return rows.all()
        seen = self.pixel_sums.all()
        for images in self._batches("entropy") if self.batches else ():
            if not np.array_equal(seen[rows.n : rows.n + len(images)], _pixel_sums(images)):
                raise UserError(_CHANGED)
            self._forward(images)
            self._count_held(edges, rows)
        if rows.n < len(seen):
            raise UserError(_CHANGED)
        return rows.all()

    # Loops over what is held have a frame of their own: a loop variable left behind would hold it longer.

    def _look_at_held(
        self,
        given: list[FloatArray],
        low: FloatArray,
        high: FloatArray,
        spectra: list[_Moments],
        values: _Rows,
    ) -> None:
        """Add to the last four, in place, what the latest batch tells."""
        for maps in self.held:
            lowest, highest = self._extremes(maps)  # first: what is not finite must not be binned
            np.minimum(low, lowest, out=low)
            np.maximum(high, highest, out=high)
            for moments, x in zip(spectra, maps, strict=True):
                moments.add(_Moments.of(_numpy(image_spectra(x))))
            measured = _numpy(torch.stack([image_magnitudes(x) for x in maps], dim=1))
            entropy, outside = self._entropy(maps, given), _ranges(maps, given, _outside)
            values.add(np.concatenate([measured, entropy, outside], axis=2))

    def _count_held(self, edges: list[FloatArray], rows: _Rows) -> None:
        for maps in self.held:
            rows.add(self._entropy(maps, edges))

    def _forward(self, images: Tensor) -> None:
        self.held = []  # before the next forward pass, so that there is never more than one batch of them
        weight = next(self.backbone.parameters(), None)
        if weight is not None:
            images = images.to(device=weight.device, dtype=weight.dtype)
        part = len(images) if images.device.type != "cpu" else max(1, CPU_VALUES // images[0].numel())
        for some in images.split(part):
            self.held.append(list(self.backbone(some, layers=self.numbers, logits=False).maps))

    def _extremes(self, maps: list[Tensor]) -> tuple[FloatArray, FloatArray]:
        found = _numpy(torch.stack([torch.stack(x.aminmax()) for x in maps]))
        for number, pair in zip(self.numbers, found, strict=True):
            if not np.isfinite(pair).all():
                layer = self.backbone.layers[number - 1]
                raise UserError(
                    f"{self.backbone.name}: layer {layer} (block {number}) has NaN or Inf in its output: "
                    "the training has diverged, or an image has such pixels"
                )
        return found[:, 0], found[:, 1]

    def _entropy(self, maps: list[Tensor], edges: list[FloatArray]) -> FloatArray:
        return _ranges(maps, edges, lambda x, limits: channel_entropy(x, limits, self.bins).mean((1, 2)))

    def _batches(self, description: str) -> Iterator[Tensor]:
        """The images, batch by batch, [B, C_in, H_in, W_in]; padding and empty batches left out."""
        images: Iterable = self.images
        if isinstance(images, Tensor):
            images = images.split(self.batch_size)
        total = len(images) if isinstance(images, Sized) else None
        hide = not self.progress or total == 1
        for batch in tqdm(images, f"{self.backbone.name}: {description}", total, disable=hide, leave=False):
            targets = None
            if isinstance(batch, (tuple, list)):
                batch, targets = (*batch, None)[:2]
            if not isinstance(batch, Tensor):
                raise UserError(
                    f"a batch is a tensor or an (images, targets) pair, not a {type(batch).__name__}"
                )
            if batch.ndim != 4 or not batch.is_floating_point():
                raise UserError(
                    "images must be normalised floating-point batches [B, C_in, H_in, W_in], not "
                    f"{batch.dtype} {list(batch.shape)}"
                )
            if isinstance(targets, Tensor) and targets.ndim == 1:
                batch = batch[(targets != PADDING).to(batch.device)]
            if len(batch):
                yield batch


_CHANGED = (
    "images differ when read a second time: turn off shuffling and random augmentation, or give two "
    "numbers as value_range, which needs one reading"
)


def _given_range(value_range: ValueRange, depth: int) -> FloatArray | None:
    """[L, 2] where the range is two numbers, None where it is to be measured."""
    if isinstance(value_range, str) and value_range in get_args(RangeMode):
        return None
    try:
        low, high = (float(limit) for limit in value_range)
    except (TypeError, ValueError):
        low, high = math.nan, math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        names = ", ".join(f'"{name}"' for name in get_args(RangeMode))
        raise UserError(f"value_range must be {names} or two numbers lo < hi, not {value_range!r}")
    return np.tile([low, high], (depth, 1))


def _edges(looks: list[_Look], magnitude: FloatArray, mode: str) -> FloatArray:
    """Range of each layer's bins [L, 2], over the images of all ranks; magnitude [L] is of them too."""
    low, high = np.min([look.low for look in looks], axis=0), np.max([look.high for look in looks], axis=0)
    if mode == "layer":
        return np.stack([low, high], axis=1)
    unit = magnitude if mode == "scaled" else np.ones_like(magnitude)
    divisor = np.where(unit > 0, unit, 1)  # a layer that is 0 everywhere is so in any unit
    return unit[:, None] * [(low / divisor).min(), (high / divisor).max()]


def _ranges(
    maps: list[Tensor], edges: list[FloatArray], measure: Callable[[Tensor, tuple[float, float]], Tensor]
) -> FloatArray:
    """L maps, and for each range its limits [L, 2] → [B, L, ranges] of a measure that gives [B]."""
    found = np.empty((len(maps[0]), len(maps), len(edges)))
    for i, limits in enumerate(edges):
        for j, (x, (low, high)) in enumerate(zip(maps, limits.tolist(), strict=True)):
            found[:, j, i] = _numpy(measure(x, (low, high)))
    return found


def _outside(x: Tensor, limits: tuple[float, float]) -> Tensor:
    """x [B, C, H, W] → [B] fraction of values outside the limits."""
    x = x if x.dtype == torch.float64 else x.float()
    return ((x < limits[0]) | (x > limits[1])).flatten(1).float().mean(1)


def _pixel_sums(images: Tensor) -> FloatArray:
    return images.detach().flatten(1).sum(1, dtype=torch.float64).cpu().numpy()


def _numpy(x: Tensor) -> FloatArray:
    return x.detach().cpu().double().numpy()


def _interleave(shares: list[FloatArray]) -> FloatArray:
    """Rows of each rank → rows in the order of the whole set: row i is on rank i mod world size."""
    rows = np.empty((sum(map(len, shares)), *shares[0].shape[1:]))
    for rank, share in enumerate(shares):
        rows[rank :: len(shares)] = share
    return rows


def _on_every_rank(work: Callable[[], T], group: dist.ProcessGroup | None) -> list[T]:
    """Results of `work` on all ranks of the group, in rank order; an error on one is raised on all."""
    if group is None:
        return [work()]
    result: T | None = None
    error: Exception | None = None
    try:
        result = work()
    except Exception as caught:  # whatever it is, the other ranks wait for news of it
        error = caught
    message = None if error is None else str(error) or type(error).__name__
    reports: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(reports, (result, message, isinstance(error, UserError)), group=group)
    if error is not None:
        raise error
    for rank, (_, message, mendable) in enumerate(reports):
        if message is not None:
            raise UserError(message) if mendable else RuntimeError(f"profile_model on rank {rank}: {message}")
    return [report[0] for report in reports]
