"""How batches come from workers to a device: in parts, as bytes, with erasing drawn before and done after."""

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from PIL import Image
from standins import trainer_on_cpu
from timm.data.random_erasing import RandomErasing
from torch.utils.data import get_worker_info
from torchvision import transforms

from distill_dynamics import Backbone, Distiller
from distill_dynamics.data import ImageFolder
from distill_dynamics.data.batches import IGNORED, Batch, joined
from distill_dynamics.data.erasing import Box, Canvas, erase
from distill_dynamics.data.keyed import seed_generators
from distill_dynamics.data.sources import FileSource
from distill_dynamics.data.transforms import normalise
from distill_dynamics.errors import UserError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ERASE = {"hflip": 0.5, "color_jitter": None, "re_prob": 0.7, "re_mode": "pixel"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """30 images of each of two classes in train, 25 in all in val."""
    root = tmp_path_factory.mktemp("feed")
    rng = np.random.default_rng(0)
    for split, count in (("train", 60), ("val", 25)):
        for number in range(count):
            path = root / split / "ab"[number % 2] / f"{number:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(path)
    return root


def data_of(folder, **settings):
    settings = {"image_size": 16, "batch_size": 20, "num_workers": 0, "seed": 0, "augment": ERASE} | settings
    data = ImageFolder(str(folder), **settings)
    data.setup("fit")
    return data


def same(one, other):
    return len(one) == len(other) and all(
        torch.equal(a, b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True)
    )


@pytest.mark.parametrize("mode", ["pixel", "rand", "const"])
def test_erasing_is_timms(mode):
    erasing = RandomErasing(0.8, mode=mode, min_count=1, max_count=3, device="cpu")
    pixels = torch.randint(0, 256, (12, 3, 24, 20), dtype=torch.uint8)
    by_hand = []
    for image, one in enumerate(pixels):
        x = transforms.functional.normalize(transforms.functional.convert_image_dtype(one), MEAN, STD)
        seed_generators(0, image)
        by_hand.append(erasing(x))

    canvas = Canvas(pixels[0].shape)
    for canvas.image in range(12):
        seed_generators(0, canvas.image)
        erasing(canvas)
    parts = joined([Batch(pixels, boxes=canvas.boxes, noise=canvas.noise)])
    ours = erase(normalise(parts.pixels, MEAN, STD), parts.boxes, parts.noise)
    assert torch.equal(ours, torch.stack(by_hand))
    assert len(canvas.boxes) > 12  # several in an image, so that they may overlap
    assert not torch.equal(ours, normalise(pixels, MEAN, STD))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_makes_the_same_bits():
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, 3, 16, 16)
    noise = torch.randn(3 * 4 * 5)
    boxes = [Box(1, 2, 3, 4, 5)]
    there = erase(normalise(pixels.cuda(), MEAN, STD), boxes, noise.cuda())
    assert torch.equal(there.cpu(), erase(normalise(pixels, MEAN, STD), boxes, noise))


def test_parts_make_the_batches_of_one_process(folder):
    one, three = (data_of(folder, num_workers=n, batch_size=24, repeats=2) for n in (0, 3))
    assert same(list(one.train_dataloader()), list(three.train_dataloader()))
    # 25 images: the last batch is smaller.
    assert [len(targets) for _, targets in three.val_dataloader()] == [24, 1]
    assert same(list(one.val_dataloader()), list(three.val_dataloader()))
    assert len(three.val_dataloader()) == 2


def test_every_worker_makes_a_part_of_the_first_batch(folder, monkeypatch):
    data = data_of(folder, num_workers=3, batch_size=24)
    loader = data.train_dataloader()
    loader.dataset._extras = lambda keys: {"worker": torch.full((len(keys),), get_worker_info().id)}
    *_, extras = next(iter(loader))
    assert extras["worker"].tolist() == [0] * 8 + [1] * 8 + [2] * 8


def test_it_goes_on_in_the_middle_of_an_epoch(folder):
    whole = list(data_of(folder, batch_size=8).train_dataloader())
    begun, resumed = (data_of(folder, batch_size=8, num_workers=2).train_dataloader() for _ in range(2))
    drawn = iter(begun)
    first = [next(drawn) for _ in range(3)]
    resumed.load_state_dict(begun.state_dict())
    assert same(first + list(resumed), whole)


def test_a_part_of_which_nothing_can_be_read(folder, monkeypatch, tmp_path):
    """Eight of the first sixteen: what is left is a batch. All sixteen: padding takes their place."""
    for path in folder.glob("val/*/*"):
        link = tmp_path / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    (tmp_path / "train").symlink_to(folder / "train")
    files = sorted((tmp_path / "val").glob("*/*"))
    for broken, expected in ((8, [8, 9]), (16, [1, 9])):
        for path in files[:broken]:
            path.unlink()
            path.write_text("none")
        data = data_of(tmp_path, num_workers=2, eval_batch_size=16, skip_unreadable=True)
        with pytest.warns(UserWarning, match="left out unreadable image"):
            targets = [targets for _, targets in data.val_dataloader()]
        assert [len(some) for some in targets] == expected
        assert len(data.unreadable.lines) == broken
    assert targets[0].tolist() == [IGNORED]
    with pytest.raises(UserError, match="unreadable image"):
        list(data_of(tmp_path, num_workers=2, eval_batch_size=16).val_dataloader())


class Fit(pl.Callback):
    """Takes note of what validation was shown."""

    def __init__(self):
        self.shown = []

    def on_validation_batch_start(self, trainer, module, batch, *args):
        self.shown.append(batch[0].clone())


@pytest.mark.parametrize(
    ("gb", "limit", "decodings"), [(1, 1.0, 25), (0, 1.0, 75), (1, 2, 20), (1e-6, 1.0, 75)]
)
def test_validation_decodes_once_while_fitting(folder, tmp_path, monkeypatch, gb, limit, decodings):
    """25 images of 768 bytes, three validations."""
    read, image = [], FileSource.image

    def counted(self, index, needed=None):
        if "val" in str(self.root):
            read.append(index)
        return image(self, index, needed)

    monkeypatch.setattr(FileSource, "image", counted)
    data = ImageFolder(
        str(folder), image_size=16, batch_size=20, eval_batch_size=10, num_workers=0, keep_val_gb=gb, seed=0
    )
    small = {"img_size": 16, "patch_size": 8, "embed_dim": 12, "depth": 1, "num_heads": 1, "num_classes": 2}
    student = Backbone("deit_tiny_patch16_224", timm_kwargs=small)
    callback = Fit()
    trainer = pl.Trainer(
        max_epochs=3, limit_val_batches=limit, num_sanity_val_steps=0, callbacks=[callback],
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(Distiller(student), datamodule=data)
    assert len(read) == decodings
    each = len(callback.shown) // 3
    assert each == (3 if limit == 1.0 else 2)
    for first, *others in zip(*(callback.shown[n * each : (n + 1) * each] for n in range(3)), strict=True):
        assert all(torch.equal(first, other) for other in others)


def test_each_rank_keeps_its_share(folder):
    """13 and 12 of the 25 images, and one that pads."""
    whole = torch.cat([images for images, _ in data_of(folder).val_dataloader()])
    kept = 0
    for rank in (0, 1):
        data = data_of(folder, eval_batch_size=4)
        data.trainer = trainer_on_cpu(rank, world=2)
        first, again = (list(data.val_dataloader()) for _ in range(2))
        assert same(first, again)
        images, targets = (torch.cat(part) for part in zip(*again, strict=True))
        assert torch.equal(images[targets != IGNORED], whole[rank::2])
        kept += sum(len(batch.targets) for batch in data.val_dataloader().kept)
    assert kept == 26


def test_another_fit_has_its_own_share_and_batches(folder):
    """One process, one DataModule, two trainers: of one rank, then of two."""
    whole = torch.cat([images for images, _ in data_of(folder).val_dataloader()])
    data = data_of(folder, eval_batch_size=10)
    data.trainer = trainer_on_cpu()
    assert [len(targets) for _, targets in data.val_dataloader()] == [10, 10, 5]
    data.eval_batch_size = 7
    data.trainer = trainer_on_cpu(0, world=2)
    data.setup("fit")
    for _ in range(2):
        images, targets = zip(*data.val_dataloader(), strict=True)
        assert [len(some) for some in targets] == [7, 6]
        assert torch.equal(torch.cat(images), whole[::2])


def test_nothing_is_kept_where_nothing_is_fitted(folder):
    data = data_of(folder)
    assert data.val_dataloader().kept is None  # a script's
    data.trainer = trainer_on_cpu()
    assert data.val_dataloader().kept is not None
    data.trainer.state.fn = "validate"
    assert data.val_dataloader().kept is None


def test_memory_is_pinned_for_a_gpu_that_is_used(folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    data = data_of(folder)
    data.trainer = trainer_on_cpu()
    assert not data.train_dataloader().pin_memory  # accelerator: cpu on a machine that has one
    data.trainer.strategy.root_device = torch.device("cuda", 1)
    loader = data.train_dataloader()
    assert loader.pin_memory
    assert loader.device == torch.device("cuda", 1)


@pytest.mark.parametrize(("device", "waits"), [("cuda", False), ("mps", True), ("cpu", True)])
def test_copies_are_waited_for_but_on_cuda(monkeypatch, device, waits):
    told = []
    monkeypatch.setattr(torch.Tensor, "to", lambda self, **how: told.append(how) or self)
    Batch(torch.zeros(1), torch.zeros(1), {"index": torch.zeros(1)}).to(torch.device(device))
    assert told == [{"device": torch.device(device), "non_blocking": not waits}] * 4
