"""The batches that a DataModule's settings and images make: transforms, orders, loaders."""

import os
import re
import warnings
from collections.abc import Sequence
from hashlib import sha256
from typing import Any

import lightning.pytorch as pl
import torch
from torchvision.transforms import Compose

from distill_dynamics.data.batches import Batch, Unreadable
from distill_dynamics.data.images import Answers, EvalImages, Images, TrainImages
from distill_dynamics.data.keyed import EvalSampler, KeyedSampler, View
from distill_dynamics.data.loading import ImageLoader
from distill_dynamics.data.sources import ArraySource, Source, Split, fingerprint
from distill_dynamics.data.transforms import eval_transform, train_transforms
from distill_dynamics.errors import UserError


class Loaders(pl.LightningDataModule):
    """What `ImageData`, which has the settings and says what they mean, gives a trainer."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    in_chans: int
    image_size: int
    view_size: int
    batch_size: int
    global_batch: int | None
    eval_batch_size: int
    num_workers: int
    augment: dict[str, Any]
    crop_padding: int
    repeats: int
    views: int | None
    view_seed: int
    crop_pct: float
    interpolation: str
    keep_val_gb: float
    labels: bool
    seed: int | None
    reduced_decode = False
    sources: dict[Split, Source]
    unreadable: Unreadable
    indexed: bool
    """Whether training batches have the images' places in the data set."""
    answers: Answers | None
    _accumulated: int
    _kept_val: list[Batch]

    @property
    def has_val(self) -> bool:
        """Whether there are validation images."""
        return True

    def _source(self, split: Split) -> Source:
        if split not in self.sources:
            raise RuntimeError(f"the {split} images are not loaded: call setup() first")
        return self.sources[split]

    def _eval_transform(self, size: int | None = None) -> Compose:
        return eval_transform(size or self.image_size, self.crop_pct, self.interpolation)

    def _train_transforms(self) -> tuple[Compose, Compose]:
        how = self.crop_padding, self.augment, self.reduced_decode
        return train_transforms(self.view_size, self.mean, self.std, self.interpolation, *how)

    def _seed(self) -> int:
        return int(os.environ.get("PL_GLOBAL_SEED", 0)) if self.seed is None else self.seed

    def _train_sampler(self, **settings: int) -> KeyedSampler:
        return KeyedSampler(len(self._source("train").targets), **settings)

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

    def order_depends_on(self) -> dict[str, Any]:
        """By name, what the order of the training images depends on beside the ranks and their batches.

        The data must be loaded.
        """
        return {"seed": self._seed(), "repeats": self.repeats, "data": fingerprint(self._source("train"))}

    def views_depend_on(self) -> dict[str, Any]:
        """What the pixels of fixed views are a function of, by name; the data must be loaded."""
        names = ["views", "view_seed", "mean", "std", "augment", "crop_padding", "interpolation"]
        transforms = re.sub(r" at 0x[0-9a-f]+", "", repr(self._train_transforms()))
        return {
            "fingerprint": fingerprint(self._source("train")),
            **{name: getattr(self, name) for name in names},
            "image_size": self.view_size,  # of the views: that of the student changes nothing
            "transforms": sha256(transforms.encode()).hexdigest()[:16],
        }

    def val_dataloader(self, size: int | None = None) -> Any:
        """Every validation image once, without randomness; [] while fitting where there are none.

        `size` is the side that images are made at from the files, in the place of `image_size`. Raises
        UserError where there are no validation images to be measured on.
        """
        fitting = self.trainer is not None and self.trainer.state.fn == "fit"
        if not self.has_val:
            if fitting:
                # So Lightning skips validation; it would ask whether that is meant.
                warnings.filterwarnings("ignore", "Total length of `list` across ranks is zero")
                return []
            raise UserError(f"data: {type(self).__name__} has no validation images here")
        source, side = self._source("val"), size or self.image_size
        blank = torch.zeros(self.in_chans, side, side, dtype=torch.uint8)
        transform = self._eval_transform(size)
        how = transform, self.mean, self.std, self.unreadable
        dataset = EvalImages(source, *how, blank=blank, indexed=not self.labels)
        sampler = EvalSampler(len(source.targets), **self._share())
        fits = len(sampler) * blank.numel() <= self.keep_val_gb * 1e9
        keeps = fitting and fits and side == self.image_size and not isinstance(source, ArraySource)
        kept = self._kept_val if keeps else None
        return self._loader(dataset, sampler=sampler, batch_size=self.eval_batch_size, kept=kept)

    def test_dataloader(self) -> Any:
        """The validation split."""
        return self.val_dataloader()

    def predict_dataloader(self) -> Any:
        """The validation split."""
        return self.val_dataloader()


def _places(views: Sequence[View]) -> dict[str, torch.Tensor]:
    view, image = torch.tensor(views).unbind(1)
    return {"view": view, "image": image}
