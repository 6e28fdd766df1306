"""Fashion-MNIST (Xiao et al. 2017, arXiv:1708.07747): the whole of it, and the sample in the package."""

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torchvision
from numpy.typing import NDArray

from distill_dynamics.data.module import ImageData
from distill_dynamics.data.sources import ArraySource, Split, download
from distill_dynamics.data.transforms import FLIP
from distill_dynamics.errors import UserError

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts the files."""
SAMPLE = Path(__file__).parent / "sample" / "fashion_mnist_sample.npz"
FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "val": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def read_idx(path: Path) -> NDArray[np.uint8]:
    """An array of bytes from an IDX file, gzipped if its name ends in .gz.

    The format: two zero bytes, 8 for unsigned bytes, the number of axes, the length of each as a big-endian
    32-bit number, the data. Raises UserError for a file that is not that.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        zeros, kind, axes = struct.unpack_from(">HBB", content)
        shape = struct.unpack_from(f">{axes}I", content, 4)
    except (EOFError, OSError, struct.error, zlib.error) as error:
        raise UserError(f"{path}: not a readable IDX file: {error}") from error
    data = np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * axes)
    if (zeros, kind) != (0, 8) or data.size != math.prod(shape):
        raise UserError(f"{path}: not an IDX file of bytes, or cut short ({len(content):,} bytes)")
    return data.reshape(shape)


def find_files(data_dir: Path) -> Path | None:
    """The folder that holds all four files, gzipped or not; None if there is none.

    Looked for in data_dir, data_dir/raw, data_dir/FashionMNIST/raw (torchvision's) and `DEBIAN`.
    """
    for folder in (data_dir, data_dir / "raw", data_dir / "FashionMNIST" / "raw", DEBIAN):
        if all(_file(folder, name) for pair in FILES.values() for name in pair):
            return folder
    return None


def _file(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def read_split(folder: Path, split: Split) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Pixels uint8 [N,28,28] and labels [N] from a folder found by `find_files`."""
    images, labels = (read_idx(path) for name in FILES[split] if (path := _file(folder, name)))
    if images.shape != (len(labels), 28, 28) or labels.max(initial=0) > 9:
        raise UserError(
            f"{folder}: the {split} files are not Fashion-MNIST's: {images.shape}, {labels.shape}"
        )
    return images, labels


class _FashionMNIST(ImageData):
    classes = torchvision.datasets.FashionMNIST.classes
    in_chans = 1

    def __init__(
        self,
        *,
        mean: tuple[float, ...] = (0.2860,),
        std: tuple[float, ...] = (0.3530,),
        image_size: int = 28,
        crop_padding: int = 2,
        augment: dict[str, Any] = FLIP,
        **kwargs: Any,
    ):
        super().__init__(
            mean=mean,
            std=std,
            image_size=image_size,
            crop_padding=crop_padding,
            augment=augment,
            **kwargs,
        )


class FashionMNIST(_FashionMNIST):
    """Fashion-MNIST: 60,000 training images of 28 × 28 pixels, 10 classes; the official test split validates.

    The four IDX files, gzipped or not, are looked for in `data_dir`, `data_dir/raw`,
    `data_dir/FashionMNIST/raw` (torchvision's layout), and where Debian's package
    dataset-fashion-mnist puts them (/usr/share/datasets/fashion-mnist).

    Args:
        data_dir: the folder to look in.
        download: fetch the files into `data_dir` (through torchvision) if they are nowhere.
        kwargs: of `ImageData`.
    """

    def __init__(self, data_dir: str = "data", download: bool = False, **kwargs: Any):
        super().__init__(**kwargs)
        self.data_dir = data_dir
        self.download = download

    def prepare_data(self) -> None:
        """Downloads the files if asked to and needed; called on one process a node."""
        if self.download and find_files(Path(self.data_dir)) is None:
            download(torchvision.datasets.FashionMNIST, self.data_dir)

    def load(self, split: Split) -> ArraySource:
        """Raises UserError if the files are missing or broken."""
        folder = find_files(Path(self.data_dir))
        if folder is None:
            raise UserError(
                f"data.data_dir: Fashion-MNIST's four files are neither in {Path(self.data_dir).resolve()}, "
                f"its raw/ or FashionMNIST/raw/, nor in {DEBIAN}; set data.download: true to fetch them"
            )
        return ArraySource(*read_split(folder, split))


class FashionMNISTSample(_FashionMNIST):
    """The packaged sample of Fashion-MNIST (see sample/README.md): class-balanced, nothing to download.

    Its training images are from the official training split, its validation images from the test split.
    """

    def load(self, split: Split) -> ArraySource:
        """Reads the file in the package."""
        with np.load(SAMPLE, allow_pickle=False) as arrays:
            return ArraySource(arrays[f"{split}_images"], arrays[f"{split}_labels"])
