import pickle
import random

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from standins import trainer_on_cpu
from torchvision.transforms.functional import to_tensor

from distill_dynamics.data import ImageData
from distill_dynamics.data.keyed import Key
from distill_dynamics.data.sources import ArraySource
from distill_dynamics.errors import UserError

HEAVY = {
    "auto_augment": "rand-m9-mstd0.5-inc1",
    "re_prob": 0.5,
    "re_mode": "pixel",
    "interpolation": "random",
}


class Toy(ImageData):
    """All that a data set of one's own needs."""

    classes = ["a", "b", "c"]  # noqa: RUF012
    in_chans = 3

    def __init__(self, size=48, **kwargs):
        settings = {
            "mean": (0.5,) * 3,
            "std": (0.25,) * 3,
            "image_size": 16,
            "batch_size": 8,
            "augment": HEAVY,
        }
        super().__init__(**(settings | kwargs))
        self.size = size

    def load(self, split):
        generator = np.random.default_rng(len(split))
        size = self.size if split == "train" else 21
        pixels = generator.integers(0, 256, (size, 16, 16, 3), dtype=np.uint8)
        return ArraySource(pixels, np.arange(size) % 3)


def toy(rank=0, world=1, **kwargs):
    data = Toy(**kwargs)
    data.trainer = trainer_on_cpu(rank, world)
    data.setup("fit")
    return data


def views(loader, epoch):
    """What an epoch shows, by key."""
    loader.sampler.set_epoch(epoch)
    batches = list(loader)
    images = [image.numpy().tobytes() for images, _ in batches for image in images]
    return dict(zip(list(loader.sampler), images, strict=False))


def test_batches_are_normalised_floats_with_integer_targets():
    data = toy(augment={"no_aug": True})
    images, targets = next(iter(data.train_dataloader()))
    assert images.dtype == torch.float32
    assert images.shape == (8, 3, 16, 16)
    assert targets.dtype == torch.int64
    keys = list(data.train_dataloader().sampler)[:8]
    source = data.sources["train"]
    assert targets.tolist() == [source.targets[key.image] for key in keys]
    for image, key in zip(images, keys, strict=True):
        expected = (to_tensor(source.pixels[key.image]) - 0.5) / 0.25
        assert torch.equal(image, expected)


def test_a_view_depends_on_its_key_and_on_nothing_else():
    reference = views(toy().train_dataloader(), epoch=3)
    assert len(reference) == 48
    others = [
        toy(num_workers=2),
        toy(batch_size=16),
        toy(rank=0, world=2),
        toy(rank=1, world=2, num_workers=1, batch_size=6),
    ]
    for data in others:
        random.seed(99), np.random.seed(99), torch.manual_seed(99)  # noqa: NPY002
        shown = views(data.train_dataloader(), epoch=3)
        assert len(shown) == 48 // data.trainer.world_size
        assert all(reference[key] == image for key, image in shown.items())


def test_persistent_workers_follow_the_epoch_and_a_repeated_epoch_is_the_same():
    loader = toy(num_workers=1).train_dataloader()
    first, second, again = views(loader, 0), views(loader, 1), views(loader, 0)
    assert first == again
    assert not set(first.values()) & set(second.values())


def test_what_keeps_an_image_from_being_drawn_is_raised_for_one_as_for_a_batch(monkeypatch):
    def away(self, index, needed=None):
        raise UserError("the storage is away")

    data = toy()
    monkeypatch.setattr(ArraySource, "image", away)
    loader = data.train_dataloader()
    for draw in (lambda: loader.dataset[Key(0, 0, 0)], lambda: next(iter(loader))):
        with pytest.raises(UserError, match="the storage is away"):
            draw()


def test_seed_epoch_image_and_repeat_all_change_the_view():
    dataset, other = (toy(seed=seed).train_dataloader().dataset for seed in (0, 1))
    keys = [Key(0, 0, 0), Key(1, 0, 0), Key(0, 0, 1)]
    images = [dataset[key][0] for key in keys] + [other[Key(0, 0, 0)][0]]
    assert len({image.numpy().tobytes() for image in images}) == 4
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[keys[1]][0], images[1])


def test_loading_leaves_the_global_generators_alone():
    data = toy(num_workers=0)
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    for loader in (data.train_dataloader(), data.val_dataloader()):
        for _ in loader:
            pass
    assert random.getstate() == before[0]
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[2])


def test_random_erasing_comes_after_normalisation():
    # Constant erasing writes 0, which no pixel is after (v/255 - 0.5)/0.25.
    data = toy(augment={"re_prob": 1.0, "re_mode": "const", "color_jitter": None})
    images, _ = next(iter(data.train_dataloader()))
    assert all((image == 0).all(dim=0).any() for image in images)


def test_repeats_show_an_image_under_different_views():
    loader = toy(repeats=3, batch_size=4, seed=1).train_dataloader()
    shown = views(loader, 0)
    images = {key.image for key in shown}
    assert len(images) == len(shown) / 3
    assert len(set(shown.values())) == len(shown)


def test_the_seed_is_the_runs_unless_given(monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")
    of_run = list(toy().train_dataloader().sampler)
    assert of_run == list(toy(seed=5).train_dataloader().sampler)
    assert of_run != list(toy(seed=6).train_dataloader().sampler)
    monkeypatch.delenv("PL_GLOBAL_SEED")
    assert list(toy().train_dataloader().sampler) == list(toy(seed=0).train_dataloader().sampler)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_validation_shows_each_image_once_over_the_ranks_and_pads_the_short_ones(num_workers):
    whole = torch.cat([images for images, _ in toy().val_dataloader()])
    assert len(whole) == 21
    seen, lengths = {}, set()
    for rank in range(4):
        loader = toy(rank=rank, world=4, eval_batch_size=5, num_workers=num_workers).val_dataloader()
        batches = list(loader)
        lengths.add(len(batches))
        images, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
        assert len(images) == 6
        real = targets != -100
        assert real.sum() == (6 if rank == 0 else 5)
        assert real[: real.sum()].all()
        for turn in range(real.sum()):
            assert torch.equal(images[turn], whole[rank + 4 * turn])
            assert targets[turn] == (rank + 4 * turn) % 3
            seen[rank + 4 * turn] = seen.get(rank + 4 * turn, 0) + 1
    assert lengths == {2}
    assert seen == dict.fromkeys(range(21), 1)


def test_a_batch_larger_than_the_data_is_one_line():
    with pytest.raises(UserError, match="batch_size: 25 is more than the 24 training images"):
        toy(batch_size=25, world=2).train_dataloader()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"mean": (0.5,)}, "data.mean: .* each of 3 channels"),
        ({"std": (0.5, 0.5, 0.0)}, "data.std: .* positive"),
        ({"batch_size": 0}, "data.batch_size: 0"),
        ({"repeats": 0}, "data.repeats: 0"),
        ({"num_workers": -1}, "data.num_workers: -1"),
        ({"crop_pct": 1.5}, "data.crop_pct: 1.5"),
        ({"interpolation": "cubic"}, "data.interpolation: 'cubic'"),
        ({"augment": {"hflips": 1}}, "did you mean 'hflip'"),
    ],
)
def test_a_wrong_setting_is_told_when_the_module_is_built(setting, message):
    with pytest.raises(UserError, match=message):
        Toy(**setting)


def test_the_fingerprint_follows_pixels_and_targets():
    def changed(change):
        data = toy()
        change(data.sources["train"])
        return data.fingerprint()

    def pixel(source):
        source.pixels[3, 2, 1, 0] ^= 1

    def target(source):
        source.targets[3] += 1

    same = changed(lambda source: None)
    assert same == toy().fingerprint()
    assert len({same, changed(pixel), changed(target)}) == 3


class Recorder(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.batches = []
        self.validated = 0

    def training_step(self, batch, _):
        self.batches.append(batch)
        return self.weight * batch[0].mean()

    def validation_step(self, batch, _):
        self.validated += len(batch[0])

    def predict_step(self, batch, _):
        return batch[1]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_lightning_sets_the_epochs_and_predicts_every_image(num_workers, tmp_path):
    data, module = Toy(num_workers=num_workers), Recorder()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, datamodule=data)
    assert module.validated == 2 * 21
    expected = []
    for epoch in (0, 1):
        loader = toy(seed=0).train_dataloader()
        loader.sampler.set_epoch(epoch)
        expected += list(loader)
    assert len(module.batches) == len(expected) == 12
    for (images, targets), (images_, targets_) in zip(module.batches, expected, strict=True):
        assert torch.equal(images, images_)
        assert torch.equal(targets, targets_)
    assert torch.cat(trainer.predict(module, datamodule=data)).tolist() == [i % 3 for i in range(21)]


def test_lightnings_overfit_batches_draws_the_first_views(tmp_path):
    module = Recorder()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        overfit_batches=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, datamodule=Toy())
    images = torch.cat([images for images, _ in module.batches])
    dataset = toy(seed=0).train_dataloader().dataset
    assert torch.equal(images, torch.stack([dataset[Key(0, i, 0)][0] for i in range(16)]))


def test_fixed_views_are_gone_through_in_turn_repeat_by_repeat():
    data = toy(views=6, repeats=3)
    data.answers = lambda views: {"view": torch.tensor([view.view for view in views])}
    loader = data.train_dataloader()
    for epoch in range(3):
        loader.sampler.set_epoch(epoch)
        shown = torch.cat([place["view"] for _, _, place in loader]).tolist()
        keys = list(loader.sampler)[: len(shown)]
        assert {key.repeat for key in keys} == {0, 1, 2}
        assert shown == [(3 * epoch + key.repeat) % 6 for key in keys]
