"""The base of every data module: loaders, keyed randomness, the probe set."""

import os
import re
from collections.abc import Sequence
from hashlib import sha256
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from torchvision.transforms import Compose

from distill_dynamics.data.batches import Batch, Unreadable
from distill_dynamics.data.global_batch import share_over_devices
from distill_dynamics.data.images import Answers, EvalImages, Images, TrainImages
from distill_dynamics.data.keyed import EvalSampler, KeyedSampler, View
from distill_dynamics.data.loading import ImageLoader
from distill_dynamics.data.probe import ProbeSet, probe_set
from distill_dynamics.data.sources import ArraySource, Source, fingerprint
from distill_dynamics.data.transforms import eval_transform, train_transforms
from distill_dynamics.errors import UserError

Split = Literal["train", "val"]


class ImageData(pl.LightningDataModule):
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
        image_size: the side in pixels that images are brought to.
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
        crop_padding: if positive, training images are padded by this many black pixels and cropped at
            random, in the place of timm's random-resized crop.
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
        seed: of order and (but for fixed views) augmentation; None takes the run's (Lightning's
            `seed_everything`), or 0.
    """

    classes: list[str]
    in_chans: int
    reduced_decode = False

    def __init__(
        self,
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        image_size: int,
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
        seed: int | None = None,
    ):
        super().__init__()
        self.mean, self.std = tuple(mean), tuple(std)
        self.image_size = image_size
        self.batch_size = self._most_at_once = batch_size
        self.global_batch = global_batch
        self._accumulated = 1  # what global_batch makes of the trainer's accumulate_grad_batches
        self.eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
        self.num_workers = num_workers
        self.augment = dict(augment)
        self.crop_padding = crop_padding
        self.repeats = repeats
        self.views, self.view_seed = views, view_seed
        self.indexed = False  # whether training batches have the images' places in the data set
        self.answers: Answers | None = None
        self.crop_pct = crop_pct
        self.interpolation = interpolation
        self.keep_val_gb = keep_val_gb
        self._kept_val: list[Batch] = []
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
        if not 0 < self.crop_pct <= 1:
            raise UserError(f"data.crop_pct: {self.crop_pct} must be in (0, 1]")
        self._eval_transform()
        self._train_transforms()

    def load(self, split: Split) -> Source:
        """The images of a split; called once for each. Sets `classes` if they are not known before."""
        raise NotImplementedError

    def find_classes(self) -> list[str]:
        """The names of the classes without loading images; [] where they are known after `setup` alone."""
        return list(getattr(self, "classes", []))

    @property
    def num_classes(self) -> int:
        """K, known after `setup` at the latest."""
        return len(self.classes)

    @property
    def class_names(self) -> list[str]:
        """The name of each class in the order of their numbers, known after `setup` at the latest."""
        return list(self.classes)

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
        splits: tuple[Split, ...] = ("train", "val") if stage in (None, "fit") else ("val",)
        for split in splits:
            if split not in self.sources:
                self.sources[split] = self.load(split)

    def order_depends_on(self) -> dict[str, Any]:
        """By name, what the order of the training images depends on beside the ranks and their batches.

        The data must be loaded.
        """
        return {"seed": self._seed(), "repeats": self.repeats, "data": fingerprint(self._source("train"))}

    def _source(self, split: Split) -> Source:
        if split not in self.sources:
            raise RuntimeError(f"the {split} images are not loaded: call setup() first")
        return self.sources[split]

    def fingerprint(self) -> str:
        """16 hex digits that change with the data: pixels and targets, or names, targets and file sizes.

        Of the splits that are loaded: both in `fit`, else validation alone.
        """
        return fingerprint(*self.sources.values())

    def probe_set(self, n: int = 32, seed: int = 0, split: Split = "val", at_most: bool = False) -> ProbeSet:
        """`n` images of a split, class-balanced, a function of `seed` alone; no global generator is touched.

        Training images too come under the transform of evaluation, without augmentation.

        Raises UserError if there are fewer images (with `at_most` all of them are taken), or if one of them
        cannot be read. With `skip_unreadable` the set is drawn anew without that image.
        """
        how = self._eval_transform(), n, seed, self.unreadable, at_most
        return probe_set(self._source(split), *how)

    def _eval_transform(self) -> Compose:
        return eval_transform(self.image_size, self.crop_pct, self.interpolation)

    def _train_transforms(self) -> tuple[Compose, Compose]:
        how = self.crop_padding, self.augment, self.reduced_decode
        return train_transforms(self.image_size, self.mean, self.std, self.interpolation, *how)

    def _train_sampler(self, **settings: int) -> KeyedSampler:
        return KeyedSampler(len(self._source("train").targets), **settings)

    def _seed(self) -> int:
        return int(os.environ.get("PL_GLOBAL_SEED", 0)) if self.seed is None else self.seed

    def _share(self) -> dict[str, int]:
        """This process's place among the ranks; a sampler's default without a trainer."""
        trainer = self.trainer
        return {} if trainer is None else {"rank": trainer.global_rank, "world": trainer.world_size}

    def _loader(self, dataset: Images, **settings: Any) -> ImageLoader:
        """Batches on the trainer's device; on the CPU without one."""
        device = torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device
        return ImageLoader(dataset, device=device, num_workers=self.num_workers, **settings)

    def train_dataloader(self) -> ImageLoader:
        """Augmented views in the order of (seed, epoch). Raises UserError if they do not fill one batch."""
        sampler = self._train_sampler(
            seed=self._seed(),
            repeats=self.repeats,
            multiple=1 if self.global_batch is None else self.batch_size * self._accumulated,
            **self._share(),
        )
        if len(sampler) < self.batch_size:
            name = "batch_size" if self.global_batch is None else "global_batch"
            raise UserError(
                f"data.{name}: {getattr(self, name)} is more than the {len(sampler.order)} training images "
                "that a device gets in an epoch"
            )
        return self._loader(
            self._train_images(self.answers), sampler=sampler, batch_size=self.batch_size, drop_last=True
        )

    def views_dataloader(self, views: Sequence[View]) -> ImageLoader:
        """Fixed views in the order given, batches of `eval_batch_size`, with "view" and "image" of each."""
        return self._loader(self._train_images(_places), sampler=views, batch_size=self.eval_batch_size)

    def _train_images(self, answers: Answers | None) -> TrainImages:
        to_pixels, finish = self._train_transforms()
        return TrainImages(
            self._source("train"),
            to_pixels,
            self.mean,
            self.std,
            self.unreadable,
            finish=finish,
            seed=self._seed() if self.views is None else self.view_seed,
            views=self.views,
            repeats=self.repeats,
            indexed=self.indexed,
            answers=answers,
        )

    def views_depend_on(self) -> dict[str, Any]:
        """What the pixels of fixed views are a function of, by name; the data must be loaded."""
        names = ["views", "view_seed", "image_size", "mean", "std"]
        names += ["augment", "crop_padding", "interpolation"]
        transforms = re.sub(r" at 0x[0-9a-f]+", "", repr(self._train_transforms()))
        return {
            "fingerprint": fingerprint(self._source("train")),
            **{name: getattr(self, name) for name in names},
            "transforms": sha256(transforms.encode()).hexdigest()[:16],
        }

    def val_dataloader(self) -> ImageLoader:
        """Every validation image once, without randomness."""
        source = self._source("val")
        blank = torch.zeros(self.in_chans, self.image_size, self.image_size, dtype=torch.uint8)
        dataset = EvalImages(
            source, self._eval_transform(), self.mean, self.std, self.unreadable, blank=blank
        )
        sampler = EvalSampler(len(source.targets), **self._share())
        fitting = self.trainer is not None and self.trainer.state.fn == "fit"
        fits = len(sampler) * blank.numel() <= self.keep_val_gb * 1e9
        kept = self._kept_val if fitting and fits and not isinstance(source, ArraySource) else None
        return self._loader(dataset, sampler=sampler, batch_size=self.eval_batch_size, kept=kept)

    def test_dataloader(self) -> ImageLoader:
        """The validation split."""
        return self.val_dataloader()

    def predict_dataloader(self) -> ImageLoader:
        """The validation split."""
        return self.val_dataloader()


def _places(views: Sequence[View]) -> dict[str, torch.Tensor]:
    view, image = torch.tensor(views).unbind(1)
    return {"view": view, "image": image}
