"""From keys to batches: datasets that draw a whole batch at once, and the loader that reports broken files.

Letters: B batch, C channels, H W grid.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info
from torchvision.transforms import Compose

from distill_dynamics.data.keyed import PADDING, Key, KeyedSampler, View, kept_generators, seed_generators
from distill_dynamics.data.sources import Source, UnreadableImage
from distill_dynamics.data.transforms import ReducedCrop, normalise
from distill_dynamics.errors import UserError
from distill_dynamics.signals import block_stop_signals

IGNORED = -100
"""The target of a padding item: not to be counted (torch's `ignore_index`)."""

K = TypeVar("K")
Drawn = tuple[Tensor, Tensor, list[str] | UserError, dict[str, Tensor]]
"""Images [B,C,H,W], targets [B], one line for each image that could not be read and is missing, or what
keeps the whole batch from being drawn; and what else is known of the images, [B, ...] each."""


class Unreadable:
    """What happens to image files that cannot be read: an error, or, with `skip`, a list of them."""

    def __init__(self, skip: bool = False):
        self.skip = skip
        self.lines: dict[str, None] = {}  # a set that keeps its order

    def report(self, lines: Sequence[str] | UserError, left: int) -> None:
        """Takes note of unreadable files in a batch of which `left` images are left.

        Raises UserError naming a file when they are not to be skipped, or when nothing is left; or the one
        that it is given.
        """
        if isinstance(lines, UserError):
            raise UserError(
                *lines.args
            )  # a new one: the old, in its own traceback, would keep the workers alive
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

    def _answers(self, keys: Sequence[K]) -> dict[str, Tensor]:
        """What else is known of the images. UserError where it is not to be had."""
        return {}

    def __getitems__(self, keys: Sequence[K]) -> Drawn:
        drawn: list[tuple[K, Tensor, int]] = []
        lines = []
        for key in keys:
            try:
                drawn.append((key, *self._item(key)))
            except UnreadableImage as error:
                # Not raised here, nor below: torch would turn it into a page of a worker's traceback.
                lines.append(str(error))
            except UserError as error:
                return torch.empty(0), torch.empty(0, dtype=torch.int64), error, {}
        if not drawn:
            return torch.empty(0), torch.empty(0, dtype=torch.int64), lines, {}
        read, pixels, targets = zip(*drawn, strict=True)
        images = normalise(torch.stack(pixels), self.mean, self.std)
        self._finish(images, read)
        try:
            return images, torch.tensor(targets), lines, self._answers(read)
        except UserError as error:
            return torch.empty(0), torch.empty(0, dtype=torch.int64), error, {}

    def __getitem__(self, key: K) -> tuple[Tensor, Tensor]:
        images, targets, lines, _ = self.__getitems__([key])
        self.unreadable.report(lines, len(targets))
        return images[0], targets[0]


class TrainImages(Images[Key]):
    """Augmented views: every draw is a function of (seed, epoch, image, repeat) and of nothing else.

    If `indexed`, a batch has the images' places in the source, "index" [B], in its third part.

    In the main process the global generators are put back afterwards; a worker process has no use for them.
    `finish` (random erasing) has a stream of its own, as it runs after the whole batch was normalised.
    """

    def __init__(self, *args: Any, finish: Compose, seed: int, indexed: bool = False):
        super().__init__(*args)
        self.finish = finish
        self.seed = seed
        self.indexed = indexed

    def _answers(self, keys: Sequence[Key]) -> dict[str, Tensor]:
        return {"index": torch.tensor([key.image for key in keys])} if self.indexed else {}

    def _stream(self, key: Key) -> tuple[int, ...]:
        """What a view's random numbers are a function of."""
        return (self.seed, *key)

    def _item(self, key: Key) -> tuple[Tensor, int]:
        needed = None
        if isinstance(crop := self.to_pixels.transforms[0], ReducedCrop):
            needed = crop.needed
            seed_generators(*self._stream(key), 0)  # it draws its box to see how small the image may be
        image = self.source.image(key.image, needed)
        seed_generators(*self._stream(key), 0)
        return self.to_pixels(image), int(self.source.targets[key.image])

    def _finish(self, images: Tensor, keys: Sequence[Key]) -> None:
        if self.finish.transforms:
            for image, key in zip(images, keys, strict=True):
                seed_generators(*self._stream(key), 1)
                image.copy_(self.finish(image))

    def __getitems__(self, keys: Sequence[Key | int]) -> Drawn:
        # Lightning's overfit_batches puts a sequential sampler in the place of ours.
        whole = [key if isinstance(key, Key) else Key(0, key, 0) for key in keys]
        with nullcontext() if get_worker_info() else kept_generators():
            return super().__getitems__(whole)


class FixedViews(TrainImages):
    """The same `views` augmented views of each image over and over, whatever the epoch, order or run.

    Repeat r of R in epoch e is view (R e + r) mod `views`. `seed` is that of the views alone. With `answers`
    (from views to [B, ...] each) a batch has those as its third part.
    """

    def __init__(
        self,
        *args: Any,
        views: int,
        repeats: int,
        answers: Callable[[Sequence[View]], dict[str, Tensor]] | None,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self.views, self.repeats, self.answers = views, repeats, answers

    def _view(self, key: Key) -> View:
        return View((self.repeats * key.epoch + key.repeat) % self.views, key.image)

    def _stream(self, key: Key) -> tuple[int, ...]:
        return (self.seed, *self._view(key))

    def _answers(self, keys: Sequence[Key]) -> dict[str, Tensor]:
        stored = self.answers([self._view(key) for key in keys]) if self.answers else {}
        return super()._answers(keys) | stored


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
    """A DataLoader over `Images` that yields (images, targets), or (images, targets, answers).

    Unreadable files are reported here, in the main process, so that the user sees one line and not a worker's
    traceback. Over a `KeyedSampler` it can be saved and continued in the middle of an epoch: what was seen is
    not drawn again.
    """

    dataset: Images
    _position = (0, 0)  # the epoch that is under way, and how many of its batches were given out

    def __iter__(self) -> Iterator[tuple[Any, ...]]:  # type: ignore[override]
        if isinstance(self.sampler, KeyedSampler):
            epoch, seen = self.sampler.seen
            now = self.sampler.epoch
            self._position = (now, seen // (self.batch_size or 1) if epoch == now else 0)
        with block_stop_signals():
            batches = super().__iter__()
        for images, targets, lines, answers in batches:
            self.dataset.unreadable.report(lines, len(targets))
            self._position = (self._position[0], self._position[1] + 1)
            yield (images, targets, answers) if answers else (images, targets)

    def state_dict(self) -> dict[str, int]:
        """The epoch that is under way and how many of its batches were given out."""
        epoch, batches = self._position
        return {"epoch": epoch, "batches": batches}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Begin that epoch, when it comes, after the batches that were given out; Lightning calls this."""
        if isinstance(self.sampler, KeyedSampler):
            self.sampler.seen = (state_dict["epoch"], state_dict["batches"] * (self.batch_size or 1))


def as_drawn(batch: Any) -> Any:
    """The collate function: `Images` stacks its batches itself."""
    return batch
