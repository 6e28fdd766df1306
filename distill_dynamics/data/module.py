"""The base of every data module: its settings, its images and their classes, the probe set."""

from typing import Any

import numpy as np

from distill_dynamics.data.batches import IGNORED, Batch, Unreadable
from distill_dynamics.data.global_batch import share_over_devices
from distill_dynamics.data.images import Answers
from distill_dynamics.data.loaders import Loaders
from distill_dynamics.data.probe import ProbeSet, probe_set
from distill_dynamics.data.sources import Source, Split, fingerprint
from distill_dynamics.errors import UserError


class ImageData(Loaders):
    """Batches (images [B,C,H,W] float32, normalised by `mean` and `std`; targets [B] int64).

    They come on the trainer's device; without a trainer, to a script that goes through a loader, on the CPU.

    A subclass writes `load` and the attributes `classes` and `in_chans`; ImageFolder, the one for data
    of one's own, is among them. Validation, test and prediction use the same split. Training order and
    augmentation are functions of (seed, epoch, image, repeat), see `keyed`. Under several ranks
    each validation image comes exactly once; short ranks get items with the target -100 that are not to
    be counted.

    Args:
        mean: of each channel, for pixels in 0 to 1.
        std: of each channel, likewise.
        image_size: the side in pixels that the student's images are brought to, and those of evaluation.
        view_size: the side that training views are drawn at, for a teacher that is to see more detail than
            the student, whose view is then the same one, resized to `image_size`. None: `image_size`.
        batch_size: images per device and step; the last, incomplete batch of an epoch is dropped.
        global_batch: images an optimiser's step, whatever the number of devices: each device takes
            `batch_size` at once, or its share if that is less, and gradients are accumulated until they are
            so many. It sets the trainer's accumulate_grad_batches; the last, incomplete global batch of an
            epoch is dropped. Any number of devices then gives the same steps, but for what is drawn or
            computed a batch at a time: dropout, and statistics over images (ProjectorKD standardises over
            the images that all devices hold at once, batch norm over those of one). None: the images of a
            step are batch x devices x accumulate_grad_batches.
        eval_batch_size: the same for validation; None takes `batch_size`. Nothing is dropped.
        num_workers: processes that prepare images; 0 prepares them in the training process.
        augment: keywords of `timm.data.create_transform`, such as auto_augment, color_jitter, hflip, scale,
            re_prob, re_mode; a dict in a config replaces the default one as a whole. What is not named keeps
            timm's default (hflip 0.5, color_jitter 0.4, scale [0.08, 1]). Random erasing
            comes last, after normalisation; `no_aug: true` switches all off.
        crop_padding: if positive, training images of `view_size` are padded by this many black pixels and
            cropped at random, in the place of timm's random-resized crop.
        repeats: views of an image drawn in an epoch (repeated augmentation). An epoch keeps its length, so
            it sees 1 in `repeats` images.
        views: each image has so many augmented views, gone through in turn: repeat r of R in epoch e is view
            (R e + r) mod `views`. None: a new one each time. A teacher's answers to fixed views can be
            computed once (`cache-teacher`).
        view_seed: of these views. It is not the run's: runs with other seeds see the same views, in another
            order.
        crop_pct: evaluation resizes the shorter side to `image_size / crop_pct` and crops the centre.
        interpolation: of that resizing and of augmentation: bilinear, bicubic, ...
        keep_val_gb: while fitting, each process keeps its share of the validation images in memory once they
            were decoded, as bytes after resizing and cropping, if it is at most so many 10^9 bytes: later
            validations read and decode nothing. ImageNet's 50,000 of 224 pixels are 7.5, shared out over
            the devices. 0 keeps none. Data sets that lie in memory are not kept twice.
        labels: whether training has classes. False hides those of the training images: they have the target
            -100, `num_classes` is 0, and the student is built without a head, to learn from its teacher's
            features alone. Validation images keep theirs (`val_classes`).
        seed: of order and (but for fixed views) augmentation; None takes the run's (Lightning's
            `seed_everything`), or 0.
    """

    classes: list[str]
    """Names of those of the images that have labels."""

    def __init__(
        self,
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        image_size: int,
        view_size: int | None = None,
        batch_size: int = 128,
        global_batch: int | None = None,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        augment: dict[str, Any],
        crop_padding: int = 0,
        repeats: int = 1,
        views: int | None = None,
        view_seed: int = 0,
        crop_pct: float = 1.0,
        interpolation: str = "bicubic",
        keep_val_gb: float = 2.0,
        labels: bool = True,
        seed: int | None = None,
    ):
        super().__init__()
        self.mean, self.std = tuple(mean), tuple(std)
        self.image_size = image_size
        self.view_size = image_size if view_size is None else view_size
        self.batch_size = self._most_at_once = batch_size
        self.global_batch = global_batch
        self._accumulated = 1  # what global_batch makes of the trainer's accumulate_grad_batches
        self.eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
        self.num_workers = num_workers
        self.augment = dict(augment)
        self.crop_padding = crop_padding
        self.repeats = repeats
        self.views, self.view_seed = views, view_seed
        self.indexed = False
        self.answers: Answers | None = None
        self.crop_pct = crop_pct
        self.interpolation = interpolation
        self.keep_val_gb = keep_val_gb
        self._kept_val: list[Batch] = []
        self.labels = labels
        self.seed = seed
        self.sources: dict[Split, Source] = {}
        self.unreadable = Unreadable()
        self._check()

    def _check(self) -> None:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.in_chans:
                raise UserError(
                    f"data.{name}: {values} needs one number for each of {self.in_chans} channels"
                )
        if min(self.std) <= 0:
            raise UserError(f"data.std: {self.std} must be positive")
        at_least_1 = ("image_size", "batch_size", "global_batch", "eval_batch_size", "repeats", "views")
        at_least_0 = ("num_workers", "crop_padding", "keep_val_gb")
        for name, least in (dict.fromkeys(at_least_0, 0) | dict.fromkeys(at_least_1, 1)).items():
            if (value := getattr(self, name)) is not None and value < least:
                raise UserError(f"data.{name}: {value} must be at least {least}")
        if self.view_size < self.image_size:
            raise UserError(
                f"data.view_size: {self.view_size} is below data.image_size {self.image_size}, to which the "
                "student's views are resized; leave it out, or make it larger"
            )
        if not 0 < self.crop_pct <= 1:
            raise UserError(f"data.crop_pct: {self.crop_pct} must be in (0, 1]")
        self._eval_transform()
        self._train_transforms()

    def load(self, split: Split) -> Source:
        """The images of a split; called once for each. Sets `classes` if they are not known before."""
        raise NotImplementedError

    def find_classes(self) -> list[str]:
        """`class_names` without loading images; [] also where they are known after `setup` alone."""
        return list(getattr(self, "classes", [])) if self.labels else []

    @property
    def num_classes(self) -> int:
        """K of training, known after `setup` at the latest; 0 without labels."""
        return len(self.class_names)

    @property
    def class_names(self) -> list[str]:
        """The name of each class in the order of their numbers, known after `setup` at the latest."""
        return list(self.classes) if self.labels else []

    @property
    def val_classes(self) -> list[str]:
        """Those of the validation images, whatever `labels` says, after `setup`; [] where there are none."""
        return list(self.classes) if self.has_val else []

    def setup(self, stage: str | None = None) -> None:
        """Loads the splits that the stage needs: both to fit, else the validation split alone.

        Before fitting with a `global_batch`, sets `batch_size` and the trainer's accumulation. Raises
        UserError where the devices cannot share it, or where the trainer was told to accumulate by itself.
        """
        if stage == "fit" and self.trainer is not None and self.global_batch is not None:
            self.batch_size, self._accumulated = share_over_devices(
                self.trainer, self.global_batch, self._most_at_once, self._accumulated
            )
        self._kept_val = []  # an earlier fit's may be other batches, or another rank's
        splits: list[Split] = ["train"] if stage in (None, "fit") else []
        splits += ["val"] if self.has_val else []
        for split in splits:
            if split not in self.sources:
                self.sources[split] = self.load(split)
                if split == "train" and not self.labels:
                    self.sources[split].targets = np.full_like(self.sources[split].targets, IGNORED)

    def fingerprint(self) -> str:
        """16 hex digits that change with the data: pixels and targets, or names, targets and file sizes.

        Of the splits that are loaded: both in `fit`, else validation alone.
        """
        return fingerprint(*self.sources.values())

    def probe_set(
        self,
        n: int = 32,
        seed: int = 0,
        split: Split | None = None,
        at_most: bool = False,
        size: int | None = None,
    ) -> ProbeSet:
        """`n` images of a split, class-balanced, a function of `seed` alone; no global generator is touched.

        None is the validation split, and where there is none, training's. Training images too come under the
        transform of evaluation, without augmentation. `size` is the side that they are made at from the
        files, in the place of `image_size`: the same images, as another model sees them.

        Raises UserError if there are fewer images (with `at_most` all of them are taken), or if one of them
        cannot be read. With `skip_unreadable` the set is drawn anew without that image.
        """
        how = self._eval_transform(size), n, seed, self.unreadable, at_most
        return probe_set(self._source(split or ("val" if self.has_val else "train")), *how)
