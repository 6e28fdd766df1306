"""From keys to batches: datasets that draw a whole batch at once, and the loader that reports broken files.

Letters: B batch, C channels, H W grid.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info
from torchvision.transforms import Compose

from distill_dynamics.data.keyed import PADDING, Key, kept_generators, seed_generators
from distill_dynamics.data.sources import Source, UnreadableImage
from distill_dynamics.data.transforms import normalise
from distill_dynamics.errors import UserError

IGNORED = -100
"""The target of a padding item: not to be counted (torch's `ignore_index`)."""

K = TypeVar("K")
Drawn = tuple[Tensor, Tensor, list[str]]
"""Images [B,C,H,W], targets [B], and one line for each image that could not be read and is missing."""


class Unreadable:
    """What happens to image files that cannot be read: an error, or, with `skip`, a list of them."""

    def __init__(self, skip: bool = False):
        self.skip = skip
        self.lines: dict[str, None] = {}  # a set that keeps its order

    def report(self, lines: Sequence[str], left: int) -> None:
        """Takes note of unreadable files in a batch of which `left` images are left.

        Raises UserError naming a file when they are not to be skipped, or when nothing is left.
        """
        for line in lines:
            if not self.skip:
                raise UserError(
                    f"unreadable image {line} "
                    "(data.skip_unreadable: true leaves such images out and counts them)"
                )
            if left == 0:
                raise UserError(f"no image of a whole batch can be read, as {line}")
            if line not in self.lines:
                self.lines[line] = None
                if len(self.lines) <= 3:
                    warnings.warn(f"left out unreadable image {line}", stacklevel=2)
                if len(self.lines) == 3:
                    warnings.warn("further unreadable images are only counted", stacklevel=2)


class Images(Dataset[tuple[Tensor, Tensor]], Generic[K]):
    """A source under a transform; draws a list of keys at once, so that a batch is normalised in one step."""

    def __init__(
        self,
        source: Source,
        to_pixels: Compose,
        mean: Sequence[float],
        std: Sequence[float],
        unreadable: Unreadable,
    ):
        self.source = source
        self.to_pixels = to_pixels
        self.mean, self.std = mean, std
        self.unreadable = unreadable

    def __len__(self) -> int:
        return len(self.source.targets)

    def _item(self, key: K) -> tuple[Tensor, int]:
        """Pixels uint8 [C,H,W] and target. Raises UnreadableImage."""
        raise NotImplementedError

    def _finish(self, images: Tensor, keys: Sequence[K]) -> None:
        """What remains to be done to normalised images, in place."""

    def __getitems__(self, keys: Sequence[K]) -> Drawn:
        drawn: list[tuple[K, Tensor, int]] = []
        lines = []
        for key in keys:
            try:
                drawn.append((key, *self._item(key)))
            except UnreadableImage as error:
                # Not raised here: torch would turn it into a page of a worker's traceback.
                lines.append(str(error))
        if not drawn:
            return torch.empty(0), torch.empty(0, dtype=torch.int64), lines
        read, pixels, targets = zip(*drawn, strict=True)
        images = normalise(torch.stack(pixels), self.mean, self.std)
        self._finish(images, read)
        return images, torch.tensor(targets), lines

    def __getitem__(self, key: K) -> tuple[Tensor, Tensor]:
        images, targets, lines = self.__getitems__([key])
        self.unreadable.report(lines, len(targets))
        return images[0], targets[0]


class TrainImages(Images[Key]):
    """Augmented views: every draw is a function of (seed, epoch, image, repeat) and of nothing else.

    In the main process the global generators are put back afterwards; a worker process has no use for them.
    `finish` (random erasing) has a stream of its own, as it runs after the whole batch was normalised.
    """

    def __init__(self, *args: Any, finish: Compose, seed: int):
        super().__init__(*args)
        self.finish = finish
        self.seed = seed

    def _item(self, key: Key) -> tuple[Tensor, int]:
        image = self.source.image(key.image)
        seed_generators(self.seed, *key, 0)
        return self.to_pixels(image), int(self.source.targets[key.image])

    def _finish(self, images: Tensor, keys: Sequence[Key]) -> None:
        if self.finish.transforms:
            for image, key in zip(images, keys, strict=True):
                seed_generators(self.seed, *key, 1)
                image.copy_(self.finish(image))

    def __getitems__(self, keys: Sequence[Key | int]) -> Drawn:
        # Lightning's overfit_batches puts a sequential sampler in the place of ours.
        whole = [key if isinstance(key, Key) else Key(0, key, 0) for key in keys]
        with nullcontext() if get_worker_info() else kept_generators():
            return super().__getitems__(whole)


class EvalImages(Images[int]):
    """Images without randomness, by index; `PADDING` gives `blank` (uint8 [C,H,W]), the target `IGNORED`."""

    def __init__(self, *args: Any, blank: Tensor):
        super().__init__(*args)
        self.blank = blank

    def _item(self, key: int) -> tuple[Tensor, int]:
        if key == PADDING:
            return self.blank, IGNORED
        return self.to_pixels(self.source.image(key)), int(self.source.targets[key])


class ImageLoader(DataLoader[tuple[Tensor, Tensor]]):
    """A DataLoader over `Images` that yields (images, targets) and reports unreadable files.

    The report is made here, in the main process, so that the user sees one line and not a worker's traceback.
    """

    dataset: Images

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:  # type: ignore[override]
        for images, targets, lines in super().__iter__():
            self.dataset.unreadable.report(lines, len(targets))
            yield images, targets


def as_drawn(batch: Any) -> Any:
    """The collate function: `Images` stacks its batches itself."""
    return batch
