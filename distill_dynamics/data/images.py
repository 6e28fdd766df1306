"""Data sets that draw a whole batch of keys at once: training views and images for evaluation.

Letters: B batch, C channels, H W grid.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info
from torchvision.transforms import Compose

from distill_dynamics.data.batches import IGNORED, Batch, Unreadable
from distill_dynamics.data.erasing import Canvas, erase
from distill_dynamics.data.keyed import NO_IMAGE, Key, View, kept_generators, seed_generators
from distill_dynamics.data.sources import Source, UnreadableImage
from distill_dynamics.data.transforms import ReducedCrop, normalise
from distill_dynamics.errors import UserError

K = TypeVar("K")
Answers = Callable[[Sequence[View]], dict[str, Tensor]]
"""What is known of fixed views, [B, ...] each."""


class Images(Dataset[tuple[Tensor, Tensor]], Generic[K]):
    """A source under a transform; draws a list of keys at once, as pixels that `normalised` finishes."""

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

    def _erased(self, shape: torch.Size, keys: Sequence[K]) -> dict[str, Any]:
        """Those fields of a `Batch` that say what is erased of images of a shape [C,H,W]."""
        return {}

    def _extras(self, keys: Sequence[K]) -> dict[str, Tensor]:
        """What else is known of the images, [B, ...] each."""
        return {}

    def __getitems__(self, keys: Sequence[K]) -> Batch:
        drawn: list[tuple[K, Tensor, int]] = []
        unreadable = []
        try:
            for key in keys:
                try:
                    drawn.append((key, *self._item(key)))
                except UnreadableImage as error:
                    unreadable.append(str(error))
            if not drawn:
                return Batch(unreadable=unreadable, asked=len(keys))
            read, pixels, targets = zip(*drawn, strict=True)
            return Batch(
                torch.stack(pixels),
                torch.tensor(targets),
                self._extras(read),
                unreadable,
                asked=len(keys),
                **self._erased(pixels[0].shape, read),
            )
        except UserError as error:
            return Batch(error=error)

    def normalised(self, batch: Batch) -> Tensor:
        """A batch's images, float32 [B,C,H,W], made from its pixels where these are."""
        return erase(normalise(batch.pixels, self.mean, self.std), batch.boxes, batch.noise)

    def none_read(self, batch: Batch) -> Batch:
        """What is given in the place of a whole batch of which no image can be read."""
        return batch

    def __getitem__(self, key: K) -> tuple[Tensor, Tensor]:
        batch = self.__getitems__([key])
        self.unreadable.check(batch)
        return self.normalised(batch)[0], batch.targets[0]


class TrainImages(Images[Key | View]):
    """Augmented views: every draw is a function of the seed and the view's key, and of nothing else.

    The key is (epoch, image, repeat). Where `views` says how many fixed views an image has, repeat r of R in
    epoch e is view (R e + r) mod `views`, and the key is that view's, which can also be asked for itself.

    In the main process the global generators are put back afterwards; a worker process has no use for them.

    Args:
        args: of `Images`.
        finish: random erasing, which is drawn here and done by `normalised`. It has random numbers of its
            own, as it comes after the whole batch was normalised.
        seed: of all views.
        views: how many fixed views an image has; None: a new one each time.
        repeats: R.
        indexed: give the images' places in the source, "index" [B], with each batch.
        answers: gives what is known of fixed views, [B, ...] each, with each batch.
    """

    def __init__(
        self,
        *args: Any,
        finish: Compose,
        seed: int,
        views: int | None = None,
        repeats: int = 1,
        indexed: bool = False,
        answers: Answers | None = None,
    ):
        super().__init__(*args)
        self.finish = finish
        self.seed = seed
        self.views, self.repeats = views, repeats
        self.indexed, self.answers = indexed, answers

    def _fixed(self, key: Key | View) -> Key | View:
        """The key that a view's random numbers are a function of."""
        if self.views is None or isinstance(key, View):
            return key
        return View((self.repeats * key.epoch + key.repeat) % self.views, key.image)

    def _item(self, key: Key | View) -> tuple[Tensor, int]:
        needed = None
        numbers = (self.seed, *self._fixed(key), 0)
        if isinstance(crop := self.to_pixels.transforms[0], ReducedCrop):
            needed = crop.needed
            seed_generators(*numbers)  # it draws its box to see how small the image may be
        image = self.source.image(key.image, needed)
        seed_generators(*numbers)
        return self.to_pixels(image), int(self.source.targets[key.image])

    def _erased(self, shape: torch.Size, keys: Sequence[Key | View]) -> dict[str, Any]:
        if not self.finish.transforms:
            return {}
        canvas = Canvas(shape)
        for canvas.image, key in enumerate(keys):
            seed_generators(self.seed, *self._fixed(key), 1)
            self.finish(canvas)
        return {"boxes": canvas.boxes, "noise": canvas.noise}

    def _extras(self, keys: Sequence[Key | View]) -> dict[str, Tensor]:
        extras = {"index": torch.tensor([key.image for key in keys])} if self.indexed else {}
        if self.answers is not None and self.views is not None:
            extras |= self.answers([self._fixed(key) for key in keys])  # type: ignore[misc]
        return extras

    def __getitems__(self, keys: Sequence[Key | View | int]) -> Batch:
        # Lightning's overfit_batches puts a sequential sampler in the place of ours.
        keyed = [Key(0, key, 0) if isinstance(key, int) else key for key in keys]
        with nullcontext() if get_worker_info() else kept_generators():
            return super().__getitems__(keyed)


class EvalImages(Images[int]):
    """Images without randomness, by index; `NO_IMAGE` gives `blank` (uint8 [C,H,W]), the target `IGNORED`.

    With `indexed`, batches have the images' places in the source, "index" [B].
    """

    def __init__(self, *args: Any, blank: Tensor, indexed: bool = False):
        super().__init__(*args)
        self.blank, self.indexed = blank, indexed

    def _item(self, key: int) -> tuple[Tensor, int]:
        if key == NO_IMAGE:
            return self.blank, IGNORED
        return self.to_pixels(self.source.image(key)), int(self.source.targets[key])

    def _extras(self, keys: Sequence[int]) -> dict[str, Tensor]:
        return {"index": torch.tensor(keys)} if self.indexed else {}

    def none_read(self, batch: Batch) -> Batch:
        """Padding: other ranks may have more batches, and would wait."""
        return super().__getitems__([NO_IMAGE])._replace(unreadable=batch.unreadable)
