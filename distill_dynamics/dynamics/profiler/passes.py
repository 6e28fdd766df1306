"""The forward passes of one process, and what is measured on each batch while it is held.

Letters: B images of one batch, n images of this process, C channels, H W grid, L layers.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from distill_dynamics.dynamics.measures.spectrum import image_spectra
from distill_dynamics.dynamics.profile import FloatArray
from distill_dynamics.dynamics.profiler.covariance import TokenCovariance
from distill_dynamics.dynamics.profiler.moments import Moments, Rows
from distill_dynamics.dynamics.profiler.ranges import by_range, outside_fraction, to_numpy
from distill_dynamics.dynamics.statistics import STATISTICS
from distill_dynamics.errors import UserError

PLAIN = [one for one in STATISTICS if one.kind == "images" and not one.binned]
BINNED = [one for one in STATISTICS if one.kind == "images" and one.binned]

IGNORED = -100
"""Target of an image that only fills up a batch; such an image is left out."""

CPU_VALUES = 8 * 3 * 224 * 224
"""Pixel values of one forward pass on a CPU; a larger batch goes through in parts, which is faster.

(CaiT-S24, 32 images: 9.5 s in parts of 8, 13.5 s at once; much of the rest is the system handing out memory
for attention maps of 40 MB each.)"""


class FeatureModel(Protocol):
    """What `profile_model` needs of a backbone; `distill_dynamics.Backbone` is one."""

    name: str
    layers: list[str]
    channels: list[int]

    def __call__(self, images: Tensor, layers: Sequence[int] | Literal["all"], logits: bool) -> Any:
        """Give an object whose `.maps` is the list of [B, C, H, W] of the layers asked for."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Parameters: the first one says which device and which precision the images must have."""


@dataclass
class Measurements:
    """What n images tell of each of the L layers."""

    low: FloatArray
    """[L] lowest value; inf where there is no image."""
    high: FloatArray
    """[L] highest value; -inf where there is no image."""
    spectra: list[Moments]
    covariances: list[TokenCovariance]
    plain: FloatArray
    """[n, L, PLAIN]: the statistics of an image that need no bins."""
    binned: FloatArray
    """[n, L, R, BINNED]: those that do, for each of the R ranges that were given beforehand."""
    outside: FloatArray
    """[n, L, R]: for each of these the fraction of values outside."""


@dataclass
class ForwardPasses:
    """The forward passes of one process."""

    backbone: FeatureModel
    images: Tensor | Iterable
    batch_size: int
    numbers: list[int]
    bins: int
    progress: bool
    rank: int
    """Image j of this process is number j · world + rank of the whole set."""
    world: int
    halves: bool
    """Whether the covariances of two halves of the images are wanted."""
    again: bool
    """Whether some range has to be measured before values can be counted."""
    held: list[list[Tensor]] = field(default_factory=list)
    """Activations of the latest batch: for each part of it, the L maps [part of B, C, H, W]."""
    pixel_sums: Rows = field(default_factory=Rows)
    """One number an image of the first pass: a second pass that sees other images is found out by them."""
    batches: int = 0
    """Of the first pass."""

    def measure(self, given: list[FloatArray]) -> Measurements:
        """First pass; entropies too, for the ranges that are known beforehand."""
        channels = [self.backbone.channels[number - 1] for number in self.numbers]
        found = Measurements(
            low=np.full(len(channels), np.inf),
            high=np.full(len(channels), -np.inf),
            spectra=[Moments(0, np.zeros(c), np.zeros(c)) for c in channels],
            covariances=[TokenCovariance(c, self.halves) for c in channels],
            plain=np.empty(0),
            binned=np.empty(0),
            outside=np.empty(0),
        )
        rows = (
            Rows(len(channels), len(PLAIN)),
            Rows(len(channels), len(given), len(BINNED)),
            Rows(len(channels), len(given)),
        )
        for images in self._batches("magnitude and spectrum"):
            if self.batches == 1 and self.again and isinstance(self.images, Iterator):
                raise UserError(
                    f"images can be read only once ({type(self.images).__name__}) and must be read twice: "
                    "give a list of batches, a DataLoader, a tensor, or two numbers as value_range"
                )
            self.batches += 1
            self.pixel_sums.add(_pixel_sums(images))
            self._forward(images)
            self._measure_held(given, found, *rows)
        found.plain, found.binned, found.outside = (row.all() for row in rows)
        return found

    def entropies(self, edges: list[FloatArray]) -> FloatArray:
        """[n, L, edges, BINNED]: from the activations at hand if of all images, else by a second pass."""
        rows = Rows(len(self.numbers), len(edges), len(BINNED))
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

    def _measure_held(
        self, given: list[FloatArray], found: Measurements, plain: Rows, binned: Rows, outside: Rows
    ) -> None:
        """Add to the last four, in place, what the latest batch tells."""
        first = plain.n * self.world + self.rank
        for maps in self.held:
            lowest, highest = self._extremes(maps)  # first: what is not finite must not be binned
            np.minimum(found.low, lowest, out=found.low)
            np.maximum(found.high, highest, out=found.high)
            for moments, x in zip(found.spectra, maps, strict=True):
                moments.add(Moments.of(to_numpy(image_spectra(x))))
            plain.add(to_numpy(torch.stack([_plain(x) for x in maps], dim=1)))
            binned.add(self._binned(maps, given))
            outside.add(by_range(maps, given, outside_fraction))
        for layer, covariance in enumerate(found.covariances):
            covariance.add([maps[layer] for maps in self.held], first, self.world)

    def _count_held(self, edges: list[FloatArray], rows: Rows) -> None:
        for maps in self.held:
            rows.add(self._binned(maps, edges))

    def _forward(self, images: Tensor) -> None:
        self.held = []  # before the next forward pass, so that there is never more than one batch of them
        for some in split_for_pass(self.backbone, images):
            self.held.append(list(self.backbone(some, layers=self.numbers, logits=False).maps))

    def _extremes(self, maps: list[Tensor]) -> tuple[FloatArray, FloatArray]:
        found = to_numpy(torch.stack([torch.stack(x.aminmax()) for x in maps]))
        for number, pair in zip(self.numbers, found, strict=True):
            if not np.isfinite(pair).all():
                layer = self.backbone.layers[number - 1]
                raise UserError(
                    f"{self.backbone.name}: layer {layer} (block {number}) has NaN or Inf in its output: "
                    "the training has diverged, or an image has such pixels"
                )
        return found[:, 0], found[:, 1]

    def _binned(self, maps: list[Tensor], edges: list[FloatArray]) -> FloatArray:
        """L maps → [B, L, edges, BINNED]."""

        def measured_by(function: Callable[..., Tensor]) -> FloatArray:
            return by_range(maps, edges, lambda x, limits: function(x, limits, self.bins))

        return np.stack([measured_by(one.load()) for one in BINNED], axis=3)

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
                batch = batch[(targets != IGNORED).to(batch.device)]
            if len(batch):
                yield batch


def split_for_pass(backbone: FeatureModel, images: Tensor) -> Sequence[Tensor]:
    """Images as the backbone takes them, on its device and in its precision, in parts that one pass holds."""
    weight = next(backbone.parameters(), None)
    if weight is not None:
        images = images.to(device=weight.device, dtype=weight.dtype)
    part = len(images) if images.device.type != "cpu" else max(1, CPU_VALUES // images[0].numel())
    return images.split(part)


_CHANGED = (
    "images differ when read a second time: turn off shuffling and random augmentation, or give two "
    "numbers as value_range, which needs one reading"
)


def _pixel_sums(images: Tensor) -> FloatArray:
    return images.detach().flatten(1).sum(1, dtype=torch.float64).cpu().numpy()


def _plain(x: Tensor) -> Tensor:
    """x [B, C, H, W] → [B, PLAIN]; a function that gives several of them is called once."""
    measured = {name: function(x) for name, function in _PLAIN_FUNCTIONS.items()}
    return torch.stack(
        [
            measured[one.function] if one.column is None else measured[one.function][:, one.column]
            for one in PLAIN
        ],
        dim=1,
    )


_PLAIN_FUNCTIONS = {one.function: one.load() for one in PLAIN}
