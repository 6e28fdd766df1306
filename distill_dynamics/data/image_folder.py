"""Image files in ImageNet's layout: a folder for each split, in it a folder for each class."""

import os
import warnings
from pathlib import Path
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from distill_dynamics.data.batches import Unreadable
from distill_dynamics.data.listing import ENDINGS, folders_in, images_in
from distill_dynamics.data.module import ImageData
from distill_dynamics.data.sources import FileSource, Source, Split
from distill_dynamics.errors import UserError

_SETTING = "data.data_dir"

RECIPE = {"auto_augment": "rand-m9-mstd0.5-inc1", "color_jitter": 0.4, "re_prob": 0.25, "re_mode": "pixel"}


class ImageFolder(ImageData):
    """`data_dir/train/<class>/*.JPEG` and `data_dir/val/<class>/*.JPEG`: ImageNet, or data of one's own.

    Classes are numbered in alphabetical order; which files count is in `data/listing.py`. The defaults are
    the published recipe on ImageNet: 224 pixels, RandAugment, random erasing, and evaluation on the centre of
    the image resized to 256.

    Args:
        data_dir: the folder that holds `train` and `val`.
        skip_unreadable: leave out image files that cannot be decoded, and list them in `unreadable.lines`;
            otherwise the first one met is an error.
        reduced_decode: decode a training image at 1/2 or 1/4 of its size where the crop that is drawn
            is still at least `view_size` (JPEG files only). Faster for images that are much larger than
            that; the crops are the same, the pixels differ by a few grey levels.
        kwargs: of `ImageData`.
    """

    in_chans = 3

    def __init__(
        self,
        data_dir: str,
        skip_unreadable: bool = False,
        reduced_decode: bool = False,
        *,
        mean: tuple[float, ...] = IMAGENET_DEFAULT_MEAN,
        std: tuple[float, ...] = IMAGENET_DEFAULT_STD,
        image_size: int = 224,
        num_workers: int = 4,
        augment: dict[str, Any] = RECIPE,
        crop_pct: float = 0.875,
        **kwargs: Any,
    ):
        self.reduced_decode = reduced_decode
        super().__init__(
            mean=mean,
            std=std,
            image_size=image_size,
            num_workers=num_workers,
            augment=augment,
            crop_pct=crop_pct,
            **kwargs,
        )
        self.data_dir = os.path.expanduser(data_dir)
        self.unreadable = Unreadable(skip_unreadable)

    def find_classes(self) -> list[str]:
        """Lists the folders of classes of one split. UserError where there is neither train nor val."""
        if not self.labels:
            return []
        splits = [Path(self.data_dir) / split for split in ("train", "val")]
        return class_folders(next((folder for folder in splits if folder.is_dir()), splits[0]), _SETTING)

    def load(self, split: Split) -> Source:
        """Lists the files; images are decoded when drawn.

        Raises UserError for a missing folder, an empty class, or classes that train and val do not share.
        """
        folder = Path(self.data_dir) / split
        if all((folder.parent / name).is_dir() for name in ("train", "val")):
            _check_same(folder.parent)
        self.classes, source = labelled_images(folder, _SETTING)
        return source

    def views_depend_on(self) -> dict[str, Any]:
        """As in `ImageData`; how files are decoded is part of it."""
        return {**super().views_depend_on(), "reduced_decode": self.reduced_decode}


def labelled_images(folder: Path, setting: str) -> tuple[list[str], FileSource]:
    """The names of a folder's class folders, and the images in them. `setting` is what named the folder.

    Raises UserError where there is no such folder, no class in it, or no image in a class.
    """
    classes = class_folders(folder, setting)
    # In torchvision's order, which seeds and probe sets go by.
    files = sorted((place.split(os.sep)[0], place, name) for place, name in images_in(folder, setting))
    if loose := [name for name, *_ in files if not name]:
        warnings.warn(
            f"{setting}: {len(loose)} of the images lie in {folder} itself, in no class; left out",
            stacklevel=2,
        )
    numbers = {name: number for number, name in enumerate(classes)}
    files = [file for file in files if file[0] in numbers]
    targets = [numbers[name] for name, *_ in files]
    if empty := set(numbers.values()) - set(targets):
        raise UserError(
            f"{setting}: {folder.resolve() / classes[min(empty)]} holds no image of its own "
            f"({len(empty)} such; known endings: {ENDINGS})"
        )
    return classes, FileSource(folder, [os.path.join(place, name) for _, place, name in files], targets)


def class_folders(folder: Path, setting: str) -> list[str]:
    """The names of the classes whose images a folder holds. UserError where it has none."""
    problem = f"the folder {folder.resolve()} is missing"
    if folder.is_dir():
        if classes := folders_in(folder, setting):
            return classes
        problem = f"{folder.resolve()} holds no class folders"
    without = " (images without classes are for class_path: distill_dynamics.data.UnlabelledFolder)"
    known = without if setting == _SETTING else ""  # of others it is known that they have classes
    raise UserError(f"{setting}: {problem}; images belong in {folder.name}/<class>/<image>{known}")


def _check_same(data_dir: Path) -> None:
    train, val = (class_folders(data_dir / split, _SETTING) for split in ("train", "val"))
    if odd := sorted(set(train) ^ set(val)):
        has, lacks = ("train", "val") if odd[0] in train else ("val", "train")
        raise UserError(
            f"{_SETTING}: in {data_dir.resolve()}, {has}/ has the class '{odd[0]}' that {lacks}/ lacks "
            f"({len(odd)} such); both need the same class folders"
        )
