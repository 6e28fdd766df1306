"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009), read, checked and downloaded by torchvision."""

from pathlib import Path
from typing import Any

import numpy as np
import torchvision

from distill_dynamics.data.module import ImageData
from distill_dynamics.data.sources import ArraySource, Split, download
from distill_dynamics.data.transforms import FLIP
from distill_dynamics.errors import UserError


class CIFAR10(ImageData):
    """CIFAR-10: 50,000 training images of 32 × 32 pixels, 10 classes; the official test split validates.

    Args:
        data_dir: the folder that holds torchvision's `cifar-10-batches-py`.
        download: fetch the files into `data_dir` if they are not there.
        kwargs: of `ImageData`.
    """

    in_chans = 3
    dataset: type[torchvision.datasets.CIFAR10] = torchvision.datasets.CIFAR10

    def __init__(
        self,
        data_dir: str = "data",
        download: bool = False,
        *,
        mean: tuple[float, ...] = (0.4914, 0.4822, 0.4465),
        std: tuple[float, ...] = (0.2470, 0.2435, 0.2616),
        image_size: int = 32,
        crop_padding: int = 4,
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
        self.data_dir = data_dir
        self.download = download

    def prepare_data(self) -> None:
        """Downloads the files if asked to and needed; called on one process a node."""
        if self.download:
            download(self.dataset, self.data_dir)

    def load(self, split: Split) -> ArraySource:
        """Raises UserError if the files are missing or are not the published ones."""
        try:
            data = self.dataset(self.data_dir, train=split == "train")
        except RuntimeError as error:
            raise UserError(
                f"data.data_dir: {Path(self.data_dir).resolve() / self.dataset.base_folder} is missing, "
                "or its files are not the published ones; set data.download: true to fetch them"
            ) from error
        self.classes = data.classes
        return ArraySource(np.asarray(data.data), np.asarray(data.targets))


class CIFAR100(CIFAR10):
    """CIFAR-100: 50,000 training images of 32 × 32 pixels, 100 classes; the official test split validates.

    Args:
        data_dir: the folder that holds torchvision's `cifar-100-python`.
        download: fetch the files into `data_dir` if they are not there.
        kwargs: of `CIFAR10`.
    """

    dataset = torchvision.datasets.CIFAR100

    def __init__(
        self,
        data_dir: str = "data",
        download: bool = False,
        *,
        mean: tuple[float, ...] = (0.5071, 0.4865, 0.4409),
        std: tuple[float, ...] = (0.2673, 0.2564, 0.2762),
        **kwargs: Any,
    ):
        super().__init__(data_dir, download, mean=mean, std=std, **kwargs)
