"""The published recipe, as configs/imagenet gives it, against timm's and torchvision's own objects."""

import numpy as np
import pytest
import timm
import timm.optim
import timm.scheduler
import torch
from PIL import Image
from standins import trainer_on_cpu
from test_configs import CONFIGS, PUBLISHED, build, configs
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform
from timm.data.distributed_sampler import RepeatAugSampler
from torchvision import transforms

from distill_dynamics.data.images import normalise
from distill_dynamics.data.keyed import KeyedSampler, mixed, seed_generators

IMAGENET = {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """1,000 photographs of two classes, too few for the model's head but enough to be drawn."""
    root = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for split, count in (("train", 500), ("val", 2)):
        for name in ("ant", "bee"):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                noise = generator.integers(0, 256, (6, 8, 3), dtype=np.uint8)
                Image.fromarray(noise).resize((40, 30)).save(root / split / name / f"{number:03d}.JPEG")
    return root


@pytest.fixture
def recipe(monkeypatch, tmp_path, photos):
    """A row of Table 1 with everything built; its optimiser as training would start with it."""

    def start(row="softkd", **options):
        options = {
            "model.teacher.pretrained": "false",
            "data.data_dir": photos,
            "data.num_workers": 0,
            **options,
        }
        extra = [item for key, value in options.items() for item in (f"--{key}", value)]
        built = build(monkeypatch, tmp_path, *configs(CONFIGS / "imagenet" / f"{row}.yaml"), *extra)
        trainer, data = built.trainer, built.datamodule
        trainer.datamodule, data.trainer = data, trainer
        data.setup("fit")
        built.model.trainer = trainer
        trainer.strategy.connect(built.model)
        trainer.strategy.setup_optimizers(trainer)
        return built

    return start


def photo(seed):
    noise = np.random.default_rng(seed).integers(0, 256, (29, 34, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((340, 290), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("row", ["softkd", "softkd_500", "spectralkd_l1_500"])
def test_the_rate_of_every_epoch_is_timms_as_deit_steps_it(recipe, row):
    built = recipe(row)
    epochs = PUBLISHED[row][3]
    optimizer = built.trainer.optimizers[0]
    rates = []
    for epoch in range(epochs):
        built.trainer.fit_loop.epoch_progress.current.completed = epoch
        built.model.on_train_epoch_start()
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()

    reference = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=5e-4 * 2048 / 512)
    schedule, _ = timm.scheduler.create_scheduler_v2(
        reference,
        "cosine",
        num_epochs=epochs,
        min_lr=1e-5,
        warmup_lr=1e-6,
        warmup_epochs=5,
        cooldown_epochs=10,
    )
    expected = []
    for epoch in range(epochs):
        expected.append(reference.param_groups[0]["lr"])
        schedule.step(epoch)  # at the end of the epoch, with its number: one late
    np.testing.assert_allclose(rates, np.transpose([expected, expected]), rtol=0, atol=1e-12)
    if epochs == 300:
        rounded = {epoch: float(f"{rates[epoch][0]:.6g}") for epoch in (0, 1, 2, 5, 6)}
        assert rounded == {0: 1e-6, 1: 1e-6, 2: 4.008e-4, 5: 1.6002e-3, 6: 1.99864e-3}
        assert f"{rates[299][0]:.4e}" == "1.0218e-05"


def test_weight_decay_groups_are_timms_by_name(recipe):
    built = recipe()
    names = {id(p): name for name, p in built.model.student.model.named_parameters()}
    ours = {
        group["weight_decay"]: {names[id(p)] for p in group["params"]}
        for group in built.trainer.optimizers[0].param_groups
    }
    model = timm.create_model("deit_tiny_patch16_224")
    theirs_by_id = {id(p): name for name, p in model.named_parameters()}
    theirs = {
        group["weight_decay"]: {theirs_by_id[id(p)] for p in group["params"]}
        for group in timm.optim.create_optimizer_v2(model, "adamw", lr=2e-3, weight_decay=0.05).param_groups
    }
    assert ours == theirs
    assert {"pos_embed", "cls_token", "norm.weight", "head.bias"} <= ours[0.0]


def test_the_optimiser_is_adamw_with_its_defaults(recipe):
    built = recipe()
    (optimizer,) = built.trainer.optimizers
    assert type(optimizer) is torch.optim.AdamW
    default = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(()))]).defaults
    assert optimizer.defaults == {**default, "lr": 5e-4, "weight_decay": 0.05, "eps": 1e-8, "fused": True}
    assert built.trainer.gradient_clip_val is None
    ce, kd = built.model.terms["ce"], built.model.terms["kd"]
    assert (ce.weight, ce[0].label_smoothing) == (pytest.approx(0.1), 0.1)
    assert (kd.weight, kd[0].temperature) == (0.9, 1.0)
    assert not [m for m in built.model.student.modules() if getattr(m, "p", 0) or getattr(m, "drop_prob", 0)]


def test_the_training_transform_is_timms(recipe):
    to_pixels, finish = recipe().datamodule._train_transforms()
    theirs = create_transform(
        224,
        is_training=True,
        color_jitter=0.4,
        auto_augment="rand-m9-mstd0.5-inc1",
        interpolation="bicubic",
        re_prob=0.25,
        re_mode="pixel",
        re_count=1,
        **IMAGENET,
    )
    told = [repr(op) for op in theirs.transforms]
    cut = next(i for i, words in enumerate(told) if "ToTensor" in words)
    assert [repr(op) for op in to_pixels.transforms[:-1]] == told[:cut]
    assert [repr(op) for op in finish.transforms] == told[cut + 2 :]
    for seed in range(8):
        seed_generators(seed)
        expected = theirs(photo(seed))
        seed_generators(seed)
        assert torch.equal(finish(normalise(to_pixels(photo(seed))[None], *IMAGENET.values())[0]), expected)
    erased = 0
    for seed in range(40):
        seed_generators(seed)
        expected = theirs.transforms[-1](torch.zeros(3, 224, 224))
        seed_generators(seed)
        assert torch.equal(finish(torch.zeros(3, 224, 224)), expected)
        erased += bool(expected.any())
    assert 2 < erased < 20


def test_a_training_batch_is_timms_under_the_key_of_each_view(recipe):
    data = recipe(**{"data.batch_size": 4, "data.global_batch": 4}).datamodule
    loader = data.train_dataloader()
    loader.sampler.set_epoch(3)
    theirs = create_transform(
        224, is_training=True, auto_augment="rand-m9-mstd0.5-inc1", interpolation="bicubic", re_prob=0.25,
        re_mode="pixel", **IMAGENET,
    )  # fmt: skip
    *augment, erase = theirs.transforms
    images, targets = next(iter(loader))
    source = data.sources["train"]
    for image, target, key in zip(images, targets, list(loader.sampler), strict=False):
        seed_generators(0, *key, 0)
        expected = transforms.Compose(augment)(source.image(key.image))
        seed_generators(0, *key, 1)
        assert torch.equal(image, erase(expected))
        assert target == source.targets[key.image]


def test_the_evaluation_transform_is_timms_and_torchvisions(recipe):
    data = recipe().datamodule
    ours = normalise(data._eval_transform()(photo(0))[None], *IMAGENET.values())[0]
    assert torch.equal(
        ours, create_transform(224, interpolation="bicubic", crop_pct=0.875, **IMAGENET)(photo(0))
    )
    deits = transforms.Compose(
        [
            transforms.Resize(256, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize(*IMAGENET.values()),
        ]
    )
    assert torch.equal(ours, deits(photo(0)))


@pytest.mark.parametrize("world", [1, 2, 8])
def test_repeated_augmentation_deals_out_views_as_timm_does(recipe, world):
    data = recipe(**{"data.batch_size": 16, "data.global_batch": 16 * world}).datamodule
    images = len(data.sources["train"].targets)
    assert (images, data.repeats) == (1000, 3)
    ours, theirs = {}, {}
    for rank in range(world):
        data.trainer = trainer_on_cpu(rank, world, accumulate_grad_batches=1)
        data.setup("fit")
        sampler = data.train_dataloader().sampler
        sampler.set_epoch(7)
        timms = RepeatAugSampler(range(images), world, rank, num_repeats=3)
        timms.set_epoch(mixed(0, 7))
        assert len(sampler) == len(list(sampler)) == len(timms) == 768 // world
        for step, (key, image) in enumerate(zip(sampler, timms, strict=True)):
            ours[step, rank] = key
            theirs[step, rank] = image
    assert {place: key.image for place, key in ours.items()} == theirs
    drawn = {}  # how often each image has come, in the order in which views are dealt out
    for place in sorted(theirs):
        repeat = drawn[theirs[place]] = drawn.get(theirs[place], -1) + 1
        assert ours[place] == (7, theirs[place], repeat)


@pytest.mark.parametrize("world", [1, 2, 8])
def test_an_epoch_of_imagenet_is_625_steps_of_2048(world):
    timms = RepeatAugSampler(range(1_281_167), world, 0, num_repeats=3)
    sampler = KeyedSampler(1_281_167, seed=0, world=world, repeats=3)
    assert len(sampler) == len(timms)
    assert len(sampler) * world // 2048 == 625


def test_a_step_is_2048_images(recipe):
    built = recipe()
    assert built.trainer.world_size == 1
    assert (built.datamodule.batch_size, built.trainer.accumulate_grad_batches) == (256, 8)
    assert built.model.global_batch == 2048


def test_a_checkpoint_every_30_epochs_and_the_best_by_top_1(recipe):
    best, every, last, *_ = recipe().trainer.checkpoint_callbacks
    assert (every._every_n_epochs, every.save_top_k, every.monitor) == (30, -1, None)
    assert (best.monitor, best.mode, best.save_top_k, best._every_n_epochs) == ("val/acc1", "max", 1, 1)
    assert last._every_n_epochs == 1
