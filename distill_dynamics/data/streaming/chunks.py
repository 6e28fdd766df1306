"""Images in chunk files, as `convert` lays them down: on a disk, or in object storage with a cache on a disk.

A converted data set is a folder, or a prefix of object storage:

    dataset.json          classes and how it was made; written last, so that without it nothing is there
    train/, val/          of each split (without labels there may be no val):
        images.npz        of its N images in ImageFolder's order: targets, names, sizes in bytes, places [N]
        index.json        litdata's: the chunk files and how many items each has
        chunk-0-0.bin     the image files themselves, one after the other, in litdata's format

An image's index is that of ImageFolder, so probe sets and augmented views are the same; its place is where
it lies in the chunks, counted through. Training images lie in random order, so that every chunk is a fair
sample of the classes.

litdata writes the chunks and talks to the storage; its StreamingDataset (0.2.76) does not read them. Its
order changes with the number of workers (tried: 1 and 2), and an image goes to one worker, so that its
copies (repeated augmentation) cannot go to several ranks. By index it asks the storage twice an image, or,
under a limit of the cache, waits for what it has just removed (300 images from a folder: 31 s). And it
cannot read from an http:// endpoint, such as MinIO's.

Letters: N images, P chunks.
"""

import io
import os
import struct
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from distill_dynamics.data.sources import Needed, UnreadableImage, decoded
from distill_dynamics.data.streaming.storage import fetch
from distill_dynamics.errors import UserError

DATASET, IMAGES, INDEX = "dataset.json", "images.npz", "index.json"


class Chunks:
    """The chunk files of one split: read where they are, or copied to a cache when they are first needed.

    Processes and ranks of a node share a cache; each file is fetched by one of them. Where a limit is given,
    chunks that have not been read for the longest time make room for new ones; one that is needed after all
    is fetched again.

    Args:
        place: of the split: a folder or a URL.
        index: of litdata, what index.json holds.
        cache: folder for copies, `cache_dir/<data set>/<split>`; None reads the chunks in place.
        limit: bytes of all chunks in `cache_dir`.
    """

    def __init__(
        self, place: str, index: dict[str, Any], cache: Path | None = None, limit: int | None = None
    ):
        self.place, self.cache, self.limit = place, cache, limit
        self.names = [file["filename"] for file in index["chunks"]]
        self.bounds = np.cumsum([0] + [file["chunk_size"] for file in index["chunks"]])
        """[P + 1], the places at which the chunks begin, and N."""

    def path(self, chunk: int) -> Path:
        """Where it is, or will be, on a disk."""
        return (self.cache or Path(self.place)) / self.names[chunk]

    def read(self, place: int) -> bytes:
        """The image file at a place.

        Raises UserError if the chunk is not to be had, OSError if it cannot be read.
        """
        chunk = int(np.searchsorted(self.bounds, place, side="right")) - 1
        while True:
            try:
                with open(self.path(chunk), "rb") as file:
                    if self.limit is not None:
                        os.utime(file.fileno())  # it is in use
                    # The file begins with the number of items, then where each begins; an item with its size.
                    file.seek(4 + 4 * (place - int(self.bounds[chunk])))
                    begin, end = struct.unpack("<2I", file.read(8))
                    file.seek(begin + 4)
                    data = file.read(end - begin - 4)
                    if len(data) < end - begin - 4:
                        raise OSError(f"{self.names[chunk]} is cut off")
                    return data
            except FileNotFoundError as error:
                if self.cache is None:
                    raise UserError(f"data.data_dir: {self.path(chunk)} is missing") from error
                self.fetch(chunk)

    def fetch(self, chunk: int) -> None:
        """Brings a chunk to the cache unless it is there. Raises UserError if that cannot be done."""
        path = self.path(chunk)
        fetch(f"{self.place}/{self.names[chunk]}", path)
        if self.limit is not None:
            make_room(path.parents[2], self.limit)


class ChunkSource:
    """The images of a split, in ImageFolder's order, out of its chunks."""

    def __init__(self, chunks: Chunks, images: Path):
        with np.load(images, allow_pickle=False) as arrays:
            self.targets, self.names = arrays["targets"], arrays["names"]
            self.sizes, self.places = arrays["sizes"], arrays["places"]
        self.chunks = chunks

    def image(self, index: int, needed: Needed | None = None) -> Image.Image:
        """A PIL image in mode RGB. Raises UnreadableImage; UserError if its chunk is not to be had."""
        name = f"{self.chunks.place}/{os.fsdecode(self.names[index])}"
        try:
            data = self.chunks.read(int(self.places[index]))
        except (OSError, struct.error) as error:
            raise UnreadableImage(f"{name}: {error}", index) from error
        return decoded(io.BytesIO(data), name, index, needed)

    def digests(self) -> Iterable[bytes | memoryview]:
        """Those of the files that were converted: the same data, the same fingerprint, unless re-encoded."""
        yield self.names.data
        yield self.targets.data
        for size in self.sizes[:: max(1, len(self.sizes) // 10_000)]:
            yield str(size).encode()


def make_room(folder: Path, limit: int) -> None:
    """Removes chunks in a `cache_dir`, the longest unread first, until `limit` bytes are left."""
    chunks = []
    for path in folder.glob("*/*/chunk-*.bin"):
        with suppress(FileNotFoundError):  # another process makes room, too
            stat = path.stat()
            chunks.append((stat.st_mtime_ns, stat.st_size, path))
    total = sum(size for _, size, _ in chunks)
    for _, size, path in sorted(chunks):
        if total <= limit:
            break
        path.unlink(missing_ok=True)
        total -= size
