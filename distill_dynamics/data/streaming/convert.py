"""`convert`: an image folder, with classes or without → chunks, on a disk or in object storage.

Letters: N images.
"""

import io
import json
import shutil
import tempfile
import uuid
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from torchvision.transforms import InterpolationMode, functional
from tqdm import tqdm

from distill_dynamics.data.image_folder import ImageFolder
from distill_dynamics.data.loading import in_batches
from distill_dynamics.data.sources import FileSource, Split, UnreadableImage
from distill_dynamics.data.streaming.chunks import DATASET, IMAGES, INDEX
from distill_dynamics.data.streaming.storage import error_line, is_stored, is_url, storage
from distill_dynamics.data.unlabelled_folder import UnlabelledFolder
from distill_dynamics.errors import UserError
from distill_dynamics.files import atomic_write, remove_partial

SCHEMA = 1
"""Version of `dataset.json`."""

SPLITS: tuple[Split, ...] = ("val", "train")


def convert(
    data_dir: str,
    out: str,
    *,
    labels: bool = True,
    val_dir: str | None = None,
    size: int | None = None,
    quality: int = 95,
    chunk_mb: float = 64,
    num_workers: int = 0,
    skip_unreadable: bool = False,
) -> None:
    """Write `train` and `val` of an image folder as chunks; see `chunks` for what is written.

    Every image is decoded once, so that none that is broken gets in. `dataset.json` is written last: what a
    stopped conversion leaves is not taken for data, and the next one begins anew in its place.

    Args:
        data_dir: as for `ImageFolder`.
        out: a new folder, or a URL (s3://, gs://), to which each chunk goes as soon as it is full.
        labels: false: `data_dir` is any folder of images without classes, as for `UnlabelledFolder`.
        val_dir: without labels, the validation images, as for `UnlabelledFolder`; there may be none.
        size: resize images whose shorter side is longer to this many pixels (bicubic, antialiased) and
            encode them anew as JPEG; the other files, and without it all, are stored byte for byte.
        quality: of these JPEG files, 1 to 100.
        chunk_mb: size of a chunk, in 10^6 bytes.
        num_workers: processes that read, decode and resize.
        skip_unreadable: leave out images that cannot be decoded; otherwise the first one met is an error.

    Raises:
        UserError: what is wrong with a setting, an image, or the place to be written to.
    """
    if size is not None and size < 1:
        raise UserError(f"--size is at least 1, not {size}")
    if not 1 <= quality <= 100:
        raise UserError(f"--quality is from 1 to 100, not {quality}")
    if not 0 < chunk_mb <= 2000:  # litdata counts the bytes of a chunk in 32 bits
        raise UserError(f"--chunk_mb is from 0 to 2000, not {chunk_mb}")
    if num_workers < 0:
        raise UserError(f"--num_workers is at least 0, not {num_workers}")
    if labels and val_dir is not None:
        raise UserError("--val_dir is for --labels false; with labels, data_dir has train/ and val/")
    folder = ImageFolder(data_dir) if labels else UnlabelledFolder(data_dir, val_dir)
    sources = {split: folder.load(split) for split in SPLITS if split == "train" or folder.has_val}
    with _output(out) as output:
        facts: dict[str, Any] = {
            "schema": SCHEMA,
            "id": uuid.uuid4().hex[:16],
            "classes": folder.classes,
            **({} if labels else {"labels": False}),
            "size": size,
            "quality": None if size is None else quality,
        }
        for split, source in sources.items():
            assert isinstance(source, FileSource)
            count = len(source.targets)
            # Files lie class by class; a chunk of training images is to be a fair sample of the classes.
            order = np.random.default_rng(0).permutation(count) if split == "train" else np.arange(count)
            batches = in_batches(partial(_contents, source, size, quality), order, 32, num_workers)
            facts[split] = _write_split(source, batches, output, split, int(chunk_mb * 1e6), skip_unreadable)
        output.keep(DATASET, json.dumps(facts, indent=1).encode())


class _Output:
    """A folder that files are written to; each goes on to object storage where `url` is given."""

    def __init__(self, folder: Path, url: str | None):
        self.folder, self.url = folder, url
        self._storage = storage(url, "--out") if url else None

    def exists(self, name: str) -> bool:
        """Whether there is such a file at the place to be written to."""
        return is_stored(f"{self.url}/{name}", "--out") if self.url else (self.folder / name).exists()

    def keep(self, name: str, content: bytes | None = None) -> None:
        """A file is done with; with `content` it is written first."""
        path = self.folder / name
        if content is not None:
            with atomic_write(path) as partial:
                partial.write_bytes(content)
        if self._storage is not None:
            with error_line(f"--out: {self.url} cannot be written"):
                self._storage.upload_file(str(path), f"{self.url}/{name}")
            path.unlink()


@contextmanager
def _output(out: str) -> Iterator[_Output]:
    """The place to be written to, free of what a stopped conversion left."""
    try:
        import litdata  # noqa: F401
    except ImportError as error:
        raise UserError("convert needs litdata: pip install 'distill_dynamics[streaming]'") from error
    staging = tempfile.mkdtemp(prefix="convert-") if is_url(out) else None
    try:
        output = _Output(Path(staging or out).expanduser(), out.rstrip("/") if staging else None)
        if output.exists(DATASET):
            raise UserError(f"--out: {out} holds a finished conversion; name a new place, or remove it")
        if staging is None:
            _clear(output.folder)
        yield output
    except OSError as error:
        raise UserError(f"--out: {out} cannot be written: {error.strerror or error}") from error
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)


def _clear(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    remove_partial(folder)
    for split in SPLITS:
        left = list((folder / split).iterdir()) if (folder / split).is_dir() else []
        for path in left:
            if not (path.name.startswith("chunk-") or path.name in (IMAGES, INDEX, f"0.{INDEX}")):
                raise UserError(f"--out: {path} is in the way; name a new folder")
        for path in left:
            path.unlink()
    if other := sorted({path.name for path in folder.iterdir()} - set(SPLITS)):
        raise UserError(f"--out: {folder} is not empty ({other[0]}); name a new folder")


def _write_split(
    source: FileSource,
    batches: Iterable[list[tuple[int, bytes | str]]],
    output: _Output,
    split: str,
    chunk_bytes: int,
    skip_unreadable: bool,
) -> dict[str, int]:
    """Writes the chunks of a split, and gives its numbers of images, chunks and bytes."""
    from litdata.streaming.writer import BinaryWriter

    count = len(source.targets)
    places, sizes = np.full(count, -1), np.zeros(count, np.int64)  # of the image files in the chunks
    stored, chunks = 0, 0
    writer = BinaryWriter(str(output.folder / split), chunk_bytes=chunk_bytes)
    with tqdm(total=count, desc=f"converting {split}", unit=" images", leave=False) as bar:
        for index, content in chain.from_iterable(batches):
            bar.update()
            if isinstance(content, str):
                if not skip_unreadable:
                    raise UserError(f"unreadable image {content} (--skip_unreadable leaves such images out)")
                warnings.warn(f"left out unreadable image {content}", stacklevel=2)
                continue
            if chunk := writer.add_item(stored, content):
                chunks += 1
                output.keep(f"{split}/{Path(chunk).name}")
            places[index], sizes[index] = stored, len(content)
            stored += 1
    kept = np.flatnonzero(places >= 0)
    if not len(kept):
        raise UserError(f"no image in {source.root} can be read")
    if lost := set(range(int(source.targets.max()) + 1)) - set(source.targets[kept].tolist()):
        first = source.path(int(np.flatnonzero(source.targets == min(lost))[0])).parent
        raise UserError(f"no image in {first} can be read")
    for chunk in writer.done():
        chunks += 1
        output.keep(f"{split}/{Path(chunk).name}")
    writer.merge()
    output.keep(f"{split}/{INDEX}")
    images = io.BytesIO()
    np.savez_compressed(
        images,
        targets=source.targets[kept],
        names=source.names[kept],
        sizes=sizes[kept],
        places=places[kept],
    )
    output.keep(f"{split}/{IMAGES}", images.getvalue())
    before = sum(source.path(int(index)).stat().st_size for index in kept)
    total = int(sizes.sum())
    left_out = f", {count - stored} left out" if stored < count else ""
    print(
        f"  {split}: {stored:,} images{left_out} in {chunks} chunks, {total / 1e9:.3g} GB "
        f"({total / before:.0%} of the files)"
    )
    return {"images": stored, "chunks": chunks, "bytes": total}


def _contents(
    source: FileSource, size: int | None, quality: int, indices: list[int]
) -> list[tuple[int, bytes | str]]:
    """(index, file to be stored) each, or (index, a line about an image that cannot be read)."""
    return [(index, _content(source, size, quality, index)) for index in indices]


def _content(source: FileSource, size: int | None, quality: int, index: int) -> bytes | str:
    try:
        image = source.image(index)
    except UnreadableImage as error:
        return str(error)
    if size is None or min(image.size) <= size:
        path = source.path(index)
        try:
            return path.read_bytes()
        except OSError as error:
            return f"{path}: {error.strerror}"
    file = io.BytesIO()
    image = functional.resize(image, [size], InterpolationMode.BICUBIC)
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()
