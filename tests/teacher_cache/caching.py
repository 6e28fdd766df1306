"""Builds and uses teacher caches without the command line, whose parser takes most of a tiny run's time."""

import copy

import lightning.pytorch as pl
import numpy as np
import pytest
from conftest import VIT
from PIL import Image
from standins import Rows

from distill_dynamics import Backbone, Distiller, Term
from distill_dynamics.data import ImageFolder
from distill_dynamics.losses import ProjectorKD, SpectralKD
from distill_dynamics.runs import lease
from distill_dynamics.teacher_cache import layout, plan
from distill_dynamics.train.cache_teacher import CacheTeacher

RGB = {**VIT, "in_chans": 3}
AUGMENT = {"auto_augment": "rand-m9-mstd0.5-inc1", "re_prob": 0.5, "re_mode": "pixel", "scale": [0.5, 1]}
ONE_STEP = {"limit_train_batches": 1, "max_epochs": 1, "limit_val_batches": 0}
TERMS = {"both": Term(SpectralKD, first=1, last=1), "projector": Term(ProjectorKD, last=2)}


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """120 training and 20 validation images of 10 classes."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split, n in (("train", 12), ("val", 2)):
        for label in range(10):
            place = root / split / f"class_{label}"
            place.mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(0, 256, (36, 40, 3), dtype=np.uint8) // 2 + 12 * label
                Image.fromarray(pixels.astype(np.uint8)).save(place / f"{i}.png")
    return root


@pytest.fixture(autouse=True)
def _work_goes_with_depth(monkeypatch):
    """As it does for models that are not tiny: the first of the teacher's 12 blocks is cheap to run."""
    monkeypatch.setattr(plan, "operations", lambda views, layers, logits: layers[-1] if layers else 12)


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(layout, "MIN_ROWS", 25)


class Setup:
    """An experiment with repeated augmentation, RandAugment, erasing, feature terms, a teacher of 12 blocks.

    The settings of the four parts can be changed; whatever runs makes its own models, from the same seed.
    """

    def __init__(
        self, folder, model=None, data=None, trainer=None, teacher=None, seed=1, data_class=ImageFolder
    ):
        self.student = {"name": "deit_tiny_patch16_224", "timm_kwargs": {**RGB, "depth": 3}}
        self.teacher = {"name": "cait_xxs24_224", "timm_kwargs": {**RGB, "embed_dim": 24, "depth": 12}}
        self.teacher |= teacher or {}
        self.model = {"terms": TERMS, "lr_images": 16, **(model or {})}
        self.data = {
            "data_dir": str(folder), "image_size": 28, "batch_size": 16, "num_workers": 0,
            "eval_batch_size": 7, "views": 2, "repeats": 3, "augment": AUGMENT, **(data or {}),
        }  # fmt: skip
        self.trainer = {"limit_train_batches": 5, "limit_val_batches": 2, "max_epochs": 3, **(trainer or {})}
        self.seed, self.data_class = seed, data_class

    def made(self, kind, **more):
        pl.seed_everything(self.seed, verbose=False)
        student, teacher = Backbone(**self.student), Backbone(**self.teacher)
        return kind(student, teacher, **copy.deepcopy(self.model), **more), self.data_class(**self.data)

    def _trainer(self, **more):
        off = ("enable_progress_bar", "enable_checkpointing", "enable_model_summary")
        more |= dict.fromkeys([*off, "use_distributed_sampler"], False)
        return pl.Trainer(accelerator="cpu", devices=1, num_sanity_val_steps=0, **self.trainer, **more)

    def cache(self, out, top_k=100, verify=False):
        """What `cache-teacher --out OUT --top_k K --verify` does."""
        model, data = self.made(CacheTeacher)
        model.folder, model.top_k, model.verifies, model.shows_progress = out, top_k, verify, False
        try:
            self._trainer(logger=False).predict(model, datamodule=data, return_predictions=False)
        finally:
            lease.release()  # as the command does at its end

    def fit(self, cache=None):
        """The rows of metrics.csv of a training."""
        rows = Rows()
        model, data = self.made(Distiller, teacher_cache=None if cache is None else str(cache))
        self._trainer(logger=rows).fit(model, datamodule=data)
        return rows.rows


def losses_of(rows):
    """The losses of the last epoch."""
    return {name: value for name, value in rows[-1].items() if name.startswith("train/loss")}


def assert_same_losses(setup, cache, rel=1e-3):
    """One epoch with the teacher and one with its cache."""
    assert losses_of(setup.fit(cache)) == pytest.approx(losses_of(setup.fit()), rel=rel, abs=5e-5)


def same_cache(one, other):
    files = sorted(path.relative_to(one) for path in [*one.glob("*.npy"), *one.glob("done/*")])
    assert files == sorted(path.relative_to(other) for path in [*other.glob("*.npy"), *other.glob("done/*")])
    for file in files:
        assert (one / file).read_bytes() == (other / file).read_bytes()
