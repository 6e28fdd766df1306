"""Images in chunk files, as `convert` lays them down: on a disk, or in object storage with a cache on a disk.

A converted data set is a folder, or a prefix of object storage:

    dataset.json          classes and how it was made; written last, so that without it nothing is there
    train/, val/          of each split:
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

import errno
import io
import json
import os
import shutil
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from PIL import Image

from distill_dynamics.data.keyed import Key, KeyedSampler, mixed
from distill_dynamics.data.sources import Needed, UnreadableImage, decoded
from distill_dynamics.errors import UserError, first_line

DATASET, IMAGES, INDEX = "dataset.json", "images.npz", "index.json"
ATTEMPTS = 12
"""How often a storage is asked before it is given up on: about half a minute, as the waits double."""


def is_url(place: str) -> bool:
    """Whether `place` is in object storage (s3://, gs://, ...), and not a folder."""
    return "://" in place


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


class ChunkSampler(KeyedSampler):
    """A KeyedSampler whose order is kind to chunks: at any time the images of a few of them are drawn.

    The chunks come in a random order for each (seed, epoch). The nodes take equal parts of it, one after the
    other, so that each fetches only its own part of the data; in a node's part every image is moved to a
    random place within the next `window` chunks. A node's ranks then take turns, as in a KeyedSampler: the
    order is a function of (seed, epoch, number of nodes), and any number of ranks on one node draws the same
    images in the same steps. Copies (`repeats`) of an image lie side by side and so come on different ranks.
    """

    def __init__(self, source: ChunkSource, *, window: int, nodes: int = 1, **settings: int):
        super().__init__(len(source.targets), **settings)
        self.source, self.window, self.nodes = source, window, nodes
        self.of_node = self.num_replicas // nodes

    def _order(self) -> NDArray[np.int64]:
        """The images of this rank's node, each once, in the order of this epoch."""
        generator = np.random.default_rng(mixed(self.seed, self.epoch))
        bounds = self.source.chunks.bounds
        turns = generator.permutation(len(bounds) - 1)
        places = np.concatenate([np.arange(bounds[chunk], bounds[chunk + 1]) for chunk in turns])
        turn = np.repeat(np.arange(len(turns)), np.diff(bounds)[turns])
        moved = turn + generator.uniform(0, self.window, len(turn))
        images = np.empty(len(places), np.int64)
        images[self.source.places] = np.arange(len(places))
        count = -(-len(self.order) * self.of_node // self.repeats)
        begin = self.rank // self.of_node * count
        part = slice(begin, begin + count)
        return images[places[part][np.argsort(moved[part], kind="stable")]]

    def __iter__(self) -> Iterator[Key]:
        epoch, seen = self.seen
        order = self._order()
        among = self.rank % self.of_node  # the node's ranks
        views = range(among, len(self) * self.of_node, self.of_node)
        for view in views[seen if epoch == self.epoch else 0 :]:
            yield Key(self.epoch, int(order[view // self.repeats]), view % self.repeats)


def storage(url: str, setting: str) -> Any:
    """litdata's client of an object storage: `upload_file`, `download_file`, `exists`.

    Raises UserError, which names the setting, if there is none.
    """
    scheme = url.partition("://")[0]
    if scheme not in ("s3", "gs"):
        raise UserError(f"{setting}: {url}: s3:// and gs:// are known, {scheme}:// is not")
    try:
        return _client(scheme, os.getpid())
    except ImportError as error:
        more = " google-cloud-storage" if scheme == "gs" else ""
        raise UserError(
            f"{setting}: {url} needs litdata: pip install 'distill_dynamics[streaming]'{more}"
        ) from error
    except Exception as error:  # Google's asks for credentials at once
        raise UserError(f"{setting}: {url} cannot be reached: {first_line(error)}") from error


@cache
def _client(scheme: str, process: int) -> Any:
    """One a process: a forked one must not use its parent's connections."""
    from litdata.streaming.fs_provider import GCPFsProvider, S3FsProvider

    if scheme == "gs":
        return GCPFsProvider()
    from botocore.config import Config

    # litdata itself would try 1,000 times: hours, where an address is wrong.
    patience = Config(connect_timeout=10, retries={"total_max_attempts": ATTEMPTS, "mode": "standard"})
    return S3FsProvider({"config": patience})


def is_stored(url: str, setting: str) -> bool:
    """Whether there is such an object. Raises UserError, which names the setting, if that cannot be known."""
    client = storage(url, setting)
    with told_as(f"{setting}: {url} cannot be reached"):
        return client.exists(url)


@contextmanager
def told_as(line: str) -> Iterator[None]:
    """Makes a UserError of what a storage's client raises, whose kinds are many: `line`, and the reason."""
    try:
        yield
    except Exception as error:
        raise UserError(f"{line}: {first_line(error)}") from error


def fetch(remote: str, local: Path) -> None:
    """Brings one file to a folder, whole or not at all; of several processes one fetches, the others wait.

    Raises UserError with the storage's reason.
    """
    try:
        local.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{local}.fetch"):
            if not local.exists():
                partial = Path(f"{local}.partial")
                try:
                    if is_url(remote):
                        storage(remote, "data.data_dir").download_file(remote, str(partial))
                    else:
                        shutil.copyfile(remote, partial)
                    partial.replace(local)
                finally:
                    partial.unlink(missing_ok=True)
    except UserError:
        raise
    except Exception as error:  # whatever the storage's own client raises
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"data.cache_dir: no space left in {local.parent} (data.cache_gb limits the cache)"
            ) from error
        if isinstance(error, OSError) and error.errno is not None and error.filename != remote:
            raise UserError(f"data.cache_dir: {local.parent}: {error.strerror}") from error
        raise UserError(f"data.data_dir: {remote} cannot be fetched: {first_line(error)}") from error


def make_room(folder: Path, limit: int) -> None:
    """Removes chunks in a `cache_dir`, the longest unread first, until `limit` bytes are left."""
    found = []
    for path in folder.glob("*/*/chunk-*.bin"):
        with suppress(FileNotFoundError):  # another process makes room, too
            stat = path.stat()
            found.append((stat.st_mtime_ns, stat.st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= limit:
            break
        path.unlink(missing_ok=True)
        total -= size


def read_json(path: Path) -> Any:
    """What a JSON file holds."""
    return json.loads(path.read_text())
