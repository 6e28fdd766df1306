"""Image files without classes: any folder, flat or nested."""

import os
from pathlib import Path
from typing import Any

from distill_dynamics.data.batches import IGNORED
from distill_dynamics.data.image_folder import ImageFolder, labelled_images
from distill_dynamics.data.listing import ENDINGS, images_in
from distill_dynamics.data.sources import FileSource, Source, Split
from distill_dynamics.errors import UserError


class UnlabelledFolder(ImageFolder):
    """All images in a folder, and in the folders in it, without classes (`ImageData.labels` is false).

    A student of theirs has no head: it learns from its teacher's features. Which files count is in
    `data/listing.py`; their order is that of their paths. The defaults are those of `ImageFolder`.

    Args:
        data_dir: the folder.
        val_dir: images with labels, `val_dir/<class>/<image>`, that the student is measured on; it lies
            beside `data_dir`, not in it. None: nothing is measured, the probe set is of training images, and
            the student that is exported is the last one.
        skip_unreadable, reduced_decode, kwargs: of `ImageFolder`.
    """

    def __init__(
        self,
        data_dir: str,
        val_dir: str | None = None,
        skip_unreadable: bool = False,
        reduced_decode: bool = False,
        **kwargs: Any,
    ):
        super().__init__(data_dir, skip_unreadable, reduced_decode, labels=False, **kwargs)
        self.val_dir = None if val_dir is None else os.path.expanduser(val_dir)
        self.classes = []  # until those of the validation images are loaded
        if self.val_dir is not None:
            places = [Path(place).resolve() for place in (self.data_dir, self.val_dir)]
            if places[0].is_relative_to(places[1]) or places[1].is_relative_to(places[0]):
                raise UserError(
                    f"data.val_dir: {self.val_dir} and data.data_dir {self.data_dir} lie in one another, and "
                    "all images of data_dir are trained on; name two folders beside each other"
                )

    @property
    def has_val(self) -> bool:
        """Whether a folder of validation images was named."""
        return self.val_dir is not None

    def load(self, split: Split) -> Source:
        """Lists the files; images are decoded when drawn.

        Raises UserError for a missing or empty folder, and for a `val_dir` without class folders.
        """
        if split == "val":
            assert self.val_dir is not None
            self.classes, source = labelled_images(Path(self.val_dir), "data.val_dir")
            return source
        folder = Path(self.data_dir)
        if not folder.is_dir():
            raise UserError(f"data.data_dir: the folder {folder.resolve()} is missing")
        names = sorted(os.path.join(place, name) for place, name in images_in(folder, "data.data_dir"))
        if not names:
            raise UserError(
                f"data.data_dir: {folder.resolve()} holds no image, nor do its folders (known endings: "
                f"{ENDINGS})"
            )
        return FileSource(folder, names, [IGNORED] * len(names))
