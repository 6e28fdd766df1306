"""Where images come from: an array in memory, or files on disk. Both give PIL images and integer targets."""

import math
import os
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path
from typing import IO, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from distill_dynamics.errors import UserError
from distill_dynamics.files import open_regular

Split = Literal["train", "val"]


class UnreadableImage(Exception):
    """An image that cannot be decoded: its index, and one line with the file's name and the reason."""

    def __init__(self, line: str, index: int):
        super().__init__(line)
        self.index = index


Needed = Callable[[tuple[int, int]], tuple[float, float]]
"""From the (width, height) of a whole image to those that it must still have when it is decoded."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""What is decoded, by content and not by the file's name. Pillow itself would try some fifty formats: an EPS
file, whatever it is called, makes it start Ghostscript."""

FULL_SIZE = "full_size"
"""Key of `Image.info`: the (width, height) of the whole image, where it may have been decoded smaller."""


class Source(Protocol):
    """N images with their classes."""

    targets: NDArray[np.int64]
    """[N], 0 to K - 1."""

    def image(self, index: int, needed: "Needed | None" = None) -> Image.Image:
        """The image as it is stored, or a smaller one where `needed` allows it. Raises UnreadableImage."""
        ...

    def digests(self) -> Iterable[bytes | memoryview]:
        """Bytes that change when the data change, for a fingerprint."""
        ...


class ArraySource:
    """Images in memory: `pixels` is uint8 [N,H,W] (grey) or [N,H,W,3]."""

    def __init__(self, pixels: NDArray[np.uint8], targets: NDArray[np.integer]):
        self.pixels = np.ascontiguousarray(pixels)
        self.targets = targets.astype(np.int64)

    def image(self, index: int, needed: Needed | None = None) -> Image.Image:
        """A PIL image in mode L or RGB, never smaller than it is stored."""
        return Image.fromarray(self.pixels[index])

    def digests(self) -> Iterable[bytes | memoryview]:
        """All pixels and targets."""
        yield self.pixels.data
        yield self.targets.data


class FileSource:
    """Image files under `root`, named by their paths relative to it, decoded to `mode` when asked for.

    Names and targets are held as two arrays: a list of a million tuples would be copied, page by page, into
    every worker process as its reference counts change.
    """

    def __init__(self, root: Path, names: list[str], targets: list[int], mode: str = "RGB"):
        self.root, self.mode = root, mode
        self.names = np.array([os.fsencode(name) for name in names])
        self.targets = np.array(targets, dtype=np.int64)

    def path(self, index: int) -> Path:
        """Where the image is."""
        return self.root / os.fsdecode(self.names[index])

    def image(self, index: int, needed: Needed | None = None) -> Image.Image:
        """A PIL image in `mode`."""
        path = self.path(index)
        image = decoded(path, str(path), index, needed)
        return image if self.mode == "RGB" else image.convert(self.mode)

    def digests(self) -> Iterable[bytes | memoryview]:
        """All names and targets, and the sizes of up to 10,000 files spread over them.

        Not every size: asking a network disk for a million of them takes minutes.
        """
        yield self.names.data
        yield self.targets.data
        for index in range(0, len(self.names), max(1, len(self.names) // 10_000)):
            try:
                yield str(self.path(index).stat().st_size).encode()
            except OSError:  # a link to nothing; whether it may be left out is told where it is read
                yield b"none"


def decoded(file: Path | IO[bytes], name: str, index: int, needed: Needed | None = None) -> Image.Image:
    """A PIL image in mode RGB.

    With `needed`, a JPEG file is decoded at 1/2 or 1/4 of its size where that is enough: its decoder leaves
    out the fine part of the cosine transform, and much of the work with it. The whole image's size is then in
    `info[FULL_SIZE]`.

    Raises UnreadableImage.
    """
    try:
        with ExitStack() as opened:
            if isinstance(file, Path):
                file = opened.enter_context(open_regular(file))
            image = opened.enter_context(Image.open(file, formats=FORMATS))
            if image.mode.startswith(("I", "F")):  # Pillow would clip them to 8 bits, most to white
                raise ValueError(f"mode {image.mode}: only images of 8 bits a channel can be read")
            if needed is not None:
                image.info[FULL_SIZE] = image.size
                width, height = map(math.ceil, needed(image.size))
                # Never 1/8, which is the mean of each block of the file and no more: it aliases.
                image.draft(None, (max(width, image.width // 4), max(height, image.height // 4)))
            return image.convert("RGB")
    except UnidentifiedImageError as error:
        raise UnreadableImage(f"{name}: no image in {', '.join(FORMATS)}", index) from error
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())
        raise UnreadableImage(f"{name}: {reason}", index) from error
    # Of broken files Pillow's decoders raise SyntaxError, OverflowError, struct.error, whatever comes.
    except Exception as error:
        raise UnreadableImage(
            f"{name}: {' '.join(str(error).split()) or type(error).__name__}", index
        ) from error


def download(dataset: Callable[..., object], data_dir: str) -> None:
    """Lets one of torchvision's data sets fetch its files, unless they are there.

    Raises UserError if they cannot be fetched.
    """
    try:
        dataset(data_dir, download=True)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"data.download: nothing could be fetched into {Path(data_dir).resolve()}: {reason}"
        ) from error


def fingerprint(*sources: Source) -> str:
    """16 hex digits of the SHA-256 of what the sources hold."""
    digest = sha256()
    for source in sources:
        for piece in source.digests():
            digest.update(piece)
    return digest.hexdigest()[:16]
