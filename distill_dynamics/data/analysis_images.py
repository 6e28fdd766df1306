"""The images of an analysis: any number of them, named by the user, read only when they are needed.

Letters: B batch, N images, C channels, H W grid.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms import Compose
from tqdm import tqdm

from distill_dynamics.data.batches import Unreadable
from distill_dynamics.data.fashion_mnist import FashionMNISTSample
from distill_dynamics.data.listing import ENDINGS, images_in
from distill_dynamics.data.loading import in_batches
from distill_dynamics.data.module import ImageData
from distill_dynamics.data.probe import draw_probe
from distill_dynamics.data.sources import FileSource, Source, Split, UnreadableImage
from distill_dynamics.data.transforms import normalise
from distill_dynamics.errors import UserError


@dataclass(frozen=True)
class ImageSet:
    """Images to choose from, and how the record of an analysis names them."""

    source: Source
    name: str
    evaluation: dict[str, Any] = field(default_factory=dict)
    """How they are resized and cropped, where a DataModule says it: image_size (H, W), crop_pct, ..."""
    skip_unreadable: bool = False

    @classmethod
    def of_path(cls, path: str | os.PathLike, skip_unreadable: bool = False) -> "ImageSet":
        """One image file, or all of a folder and the folders in it, in the order of their paths.

        The classes are the folders in which the files lie; which files count is in `data/listing.py`. Raises
        UserError where there is no such path, or no image in it.
        """
        if not os.fspath(path):
            raise UserError("--images: an empty path; name a folder or a file")
        path = Path(path).expanduser()
        if path.is_file():
            return cls(FileSource(path.parent, [path.name], [0]), str(path), {}, skip_unreadable)
        if not path.is_dir():
            raise UserError(f"--images: no such folder or file: {path}")
        names = sorted(os.path.join(place, name) for place, name in images_in(path, "--images"))
        if not names:
            raise UserError(f"--images: {path} holds no image, nor do its folders (known endings: {ENDINGS})")
        folders = [os.path.dirname(name) for name in names]
        number = {folder: i for i, folder in enumerate(sorted(set(folders)))}
        targets = [number[folder] for folder in folders]
        return cls(FileSource(path, names, targets), str(path), {}, skip_unreadable)

    @classmethod
    def of_datamodule(cls, data: ImageData, name: str, skip_unreadable: bool = False) -> "ImageSet":
        """A DataModule's validation images, its training images where it has none, as it evaluates."""
        split: Split = "val" if data.has_val else "train"
        data.prepare_data()
        data.setup("validate" if data.has_val else "fit")
        evaluation = {
            "image_size": (data.image_size, data.image_size),
            "crop_pct": data.crop_pct,
            "interpolation": data.interpolation,
            "crop_mode": "center",
        }
        return cls(data.sources[split], name, evaluation, skip_unreadable or data.unreadable.skip)

    @classmethod
    def of_sample(cls) -> "ImageSet":
        """The validation images of the packaged sample, under each model's own transform."""
        return cls(FashionMNISTSample().load("val"), "packaged sample of Fashion-MNIST, validation images")

    def draw(self, n: int | None, seed: int, num_workers: int = 0) -> NDArray[np.int64]:
        """Indices [n] of a class-balanced draw (`draw_probe`); of all images for None.

        With `skip_unreadable` the drawn images are all decoded once, those that cannot be are reported, and
        the draw is made anew without them. Raises UserError if there are not n images.
        """
        usable, checked = np.arange(len(self.source.targets)), np.zeros(len(self.source.targets), bool)
        report = Unreadable(skip=True)
        while True:
            wanted = len(usable) if n is None else n
            if wanted < 1:
                raise UserError(f"--n_images is at least 1, not {n}")
            if wanted > len(usable):
                raise UserError(f"--n_images: {n} is more than the {len(usable)} images of {self.name}")
            indices = usable[draw_probe(self.source.targets[usable], wanted, seed)]
            if not self.skip_unreadable:
                return indices
            loader = in_batches(
                partial(_unreadable, self.source), indices[~checked[indices]], 32, num_workers
            )
            bar = tqdm(loader, "looking for unreadable images", disable=len(loader) < 2, leave=False)
            bad = {index: line for lines in bar for index, line in lines.items()}
            if not bad:
                return indices
            report.report(list(bad.values()), left=len(usable) - len(bad))
            checked[indices] = True
            usable = np.setdiff1d(usable, list(bad))

    def names(self, indices: Sequence[int] | NDArray[np.integer]) -> list[str] | None:
        """Paths of images in their folder; None for images that are no files of their own."""
        if not isinstance(self.source, FileSource):
            return None
        return [os.fsdecode(name) for name in self.source.names[indices]]


class ImageStream:
    """N images for one model, as batches [B,C,H,W] float32; it can be gone through any number of times.

    Held at any moment are the batches in work. `probe_id` is known once it has been gone through.

    Args:
        source: of the images.
        indices: [N], which of them, in this order.
        to_pixels: PIL image → uint8 [C,H,W].
        mean, std: of each channel: one for a model of grey images, three for one of RGB. The files may be
            either.
        batch_size: B; the last batch may be smaller.
        num_workers: processes that decode and resize.

    Raises UserError, when gone through, naming a file that cannot be read.
    """

    def __init__(
        self,
        source: Source,
        indices: NDArray[np.integer],
        to_pixels: Compose,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        batch_size: int = 32,
        num_workers: int = 0,
    ) -> None:
        self.mean, self.std = mean, std
        self.probe_id = ""
        self._count = len(indices)
        work = partial(_pixels, source, to_pixels, "L" if len(mean) == 1 else "RGB")
        self._loader = in_batches(work, indices, batch_size, num_workers)

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Tensor]:
        digest = None
        for pixels in self._loader:
            if isinstance(pixels, str):
                raise UserError(f"unreadable image {pixels} (--skip_unreadable leaves such images out)")
            if digest is None:  # that of ProbeSet, which has all pixels at hand
                digest = sha256(repr((self._count, *pixels.shape[1:])).encode())
            digest.update(pixels.numpy().tobytes())
            yield normalise(pixels, self.mean, self.std)
        self.probe_id = digest.hexdigest()[:16] if digest else ""


def _pixels(source: Source, to_pixels: Compose, mode: str, indices: list[int]) -> Tensor | str:
    """uint8 [B,C,H,W]; or a line about an image that cannot be read, for the main process to raise."""
    try:
        return torch.stack([to_pixels(source.image(index).convert(mode)) for index in indices])
    except UnreadableImage as error:
        return str(error)


def _unreadable(source: Source, indices: list[int]) -> dict[int, str]:
    """A line about each image that cannot be decoded, by index."""
    lines = {}
    for index in indices:
        try:
            source.image(index)
        except UnreadableImage as error:
            lines[index] = str(error)
    return lines
