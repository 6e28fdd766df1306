import hashlib
import json
import shutil
from collections import namedtuple

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from conftest import VIT
from PIL import Image
from test_fit import fit, rows

from distill_dynamics.backbone import Backbone
from distill_dynamics.cli import main
from distill_dynamics.data import ImageFolder
from distill_dynamics.teacher_cache import build, shards

LOSSES = "distill_dynamics.losses"
RGB = {**VIT, "in_chans": 3}
AUGMENT = {"auto_augment": "rand-m9-mstd0.5-inc1", "re_prob": 0.5, "re_mode": "pixel", "scale": [0.5, 1]}


@pytest.fixture(scope="module")
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


@pytest.fixture
def config(experiment, folder):
    """Repeated augmentation, RandAugment, erasing; three feature terms; a teacher of 12 blocks."""

    def write(name="cached", **changes):
        def term(loss, **pairs):
            return {"loss": {"class_path": f"{LOSSES}.{loss}"}, "weight": 0.2, **pairs}

        return experiment(
            name,
            **{
                "model__student__timm_kwargs": {**RGB, "depth": 3},
                "model__teacher__timm_kwargs": {**RGB, "embed_dim": 24, "depth": 12},
                "model__terms": {
                    "both": term("SpectralKD", first=1, last=1),
                    "projector": term("ProjectorKD", last=2),
                },
                "data": {
                    "class_path": "distill_dynamics.data.ImageFolder",
                    "init_args": {
                        "data_dir": str(folder), "image_size": 28, "batch_size": 16, "num_workers": 0,
                        "eval_batch_size": 7, "views": 2, "repeats": 3, "augment": AUGMENT,
                    },
                },
                "trainer__limit_train_batches": 5,
                "trainer__max_epochs": 3,
                "probe__every_n_epochs": 0,
                **changes,
            },
        )  # fmt: skip

    return write


def cache_teacher(config, out, *args):
    main(["cache-teacher", "--config", str(config), "--out", str(out), *args])


def numbers(run_dir):
    names = ("train/loss", "train/loss_ce", "train/loss_kd", "train/loss_both", "train/loss_projector")
    return np.array([[float(row[name]) for name in names] for row in rows(run_dir)[1:]])


def fails(capsys, run, *words):
    with pytest.raises(SystemExit) as exit_:
        run()
    said = capsys.readouterr().err.strip()
    assert exit_.value.code == 2
    assert said.count("\n") == 0, said
    assert all(word in said for word in words), said


@pytest.fixture(autouse=True)
def _time_goes_with_depth(monkeypatch):
    """As it does for models that are not tiny, on machines that have nothing else to do."""
    monkeypatch.setattr(
        build.CacheBuilder, "_seconds", lambda self, layers, logits: layers[-1] if layers else 12.0
    )


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(shards, "SHARD_BYTES", 20_000)


def test_a_run_with_the_cache_is_a_run_with_the_teacher(config, tmp_path, monkeypatch, small_shards, capsys):
    fit(config(), "--name", "online")
    cache_teacher(config(), tmp_path / "cache")
    said = capsys.readouterr().out
    assert "computed while training" in said
    assert "stored, " in said
    assert len(list((tmp_path / "cache").glob("view_*/*"))) > 4

    asked = []
    forward = Backbone.forward

    def watched(self, images, layers=(), logits=True):
        if self.name.startswith("cait"):
            asked.append((len(images), tuple(layers), logits))
        return forward(self, images, layers, logits)

    monkeypatch.setattr(Backbone, "forward", watched)
    fit(config(), "--name", "cached", "--model.teacher_cache", str(tmp_path / "cache"))
    assert {call for call in asked if call[0] > 1} == {(16, (1,), False)}

    runs = tmp_path / "runs"
    np.testing.assert_allclose(numbers(runs / "cached"), numbers(runs / "online"), rtol=2e-3, atol=5e-5)
    assert rows(runs / "cached")[0]["teacher/acc1"] == rows(runs / "online")[0]["teacher/acc1"]


def test_the_config_that_trains_with_the_cache_builds_it(config, tmp_path):
    cache = tmp_path / "cache"
    both = config(model__teacher_cache=str(cache), trainer__max_epochs=1)
    cache_teacher(both, cache)
    fit(both, "--name", "cached")
    assert len(rows(tmp_path / "runs" / "cached")) == 2


def test_the_first_step_is_equal_to_the_rounding_of_what_is_stored(config, tmp_path):
    once = {"trainer__limit_train_batches": 1, "trainer__max_epochs": 1}
    cache_teacher(config(), tmp_path / "cache")
    fit(config(**once), "--name", "online")
    fit(config(**once), "--name", "cached", "--model.teacher_cache", str(tmp_path / "cache"))
    runs = tmp_path / "runs"
    np.testing.assert_allclose(numbers(runs / "cached"), numbers(runs / "online"), rtol=1e-5, atol=5e-5)


def test_another_seed_sees_the_same_views_in_another_order(folder):
    def seen(seed, epoch, **settings):
        data = ImageFolder(
            str(folder), image_size=28, batch_size=40, num_workers=0, augment=AUGMENT, seed=seed, **settings
        )
        data.setup("fit")
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)
        return {image.numpy().tobytes() for images, _ in loader for image in images}, next(iter(loader))[0]

    first, order = seen(0, 0, views=2)
    other, other_order = seen(1, 0, views=2)
    assert first == other
    assert not torch.equal(order, other_order)
    assert first == seen(5, 4, views=2)[0]  # epoch 4 is view 0 again
    assert not first & seen(0, 1, views=2)[0]
    assert not first & seen(0, 0, views=2, view_seed=1)[0]


def test_repeat_r_of_R_in_epoch_e_is_view_R_e_plus_r(folder):
    data = ImageFolder(
        str(folder), image_size=28, batch_size=20, num_workers=0, augment=AUGMENT, views=4, repeats=3
    )
    data.setup("fit")
    data.answers = lambda views: {"view": torch.tensor(views)}
    loader = data.train_dataloader()
    for epoch in (0, 1, 5):
        loader.sampler.set_epoch(epoch)
        expected = [((3 * epoch + key.repeat) % 4, key.image) for key in loader.sampler]
        found = [tuple(row.tolist()) for _, _, answers in loader for row in answers["view"]]
        assert found == expected


def test_a_build_that_was_killed_goes_on(config, tmp_path, monkeypatch, small_shards):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    cache_teacher(config(), whole)
    write, written = build.write_shard, []

    def killed(folder, layout, shard, arrays):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(shards.shard_folder(folder, layout, shard))
        write(folder, layout, shard, arrays)

    monkeypatch.setattr(build, "write_shard", killed)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        cache_teacher(config(), cut)
    before = [path.stat().st_mtime_ns for path in written]
    monkeypatch.setattr(build, "write_shard", write)
    cache_teacher(config(), cut)
    assert [path.stat().st_mtime_ns for path in written] == before
    files = sorted(path.relative_to(whole) for path in whole.rglob("*.npy"))
    assert files == sorted(path.relative_to(cut) for path in cut.rglob("*.npy"))
    for file in files:
        assert (whole / file).read_bytes() == (cut / file).read_bytes()


def test_what_does_not_match_is_refused_with_the_line_that_differs(config, tmp_path, capsys):
    cache = tmp_path / "cache"
    cache_teacher(config(), cache)

    def run(*args, **changes):
        return lambda: fit(config(**changes), "--model.teacher_cache", str(cache), *args)

    given = "--data.init_args."
    fails(capsys, run(f"{given}view_seed", "3"), "data.view_seed 0", "here it is 3")
    fails(capsys, run(f"{given}augment", "{hflip: 0.5}"), "data.augment", "'hflip': 0.5")
    fails(capsys, run(f"{given}views", "3"), "data.views 2", "here it is 3")
    fails(capsys, run("--seed_everything", "2"), "teacher.weights")
    fails(capsys, run("--model.temperature", "2"), "model.temperature 1.0", "it is 2.0")
    terms = {"deep": {"loss": {"class_path": f"{LOSSES}.SpectralKD"}, "pairs": [[1, 7]]}}
    fails(capsys, run(model__terms=terms), "no map of the teacher's block 7")
    shutil.rmtree(next(cache.glob("view_001/*")))
    fails(capsys, run(), "1 of 2 shards are missing")
    fails(capsys, lambda: fit(config(), "--model.teacher_cache", str(tmp_path)), "cache.json does not exist")
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())


def test_verifying_finds_damage_and_foreign_answers(config, tmp_path, capsys):
    cache = tmp_path / "cache"
    cache_teacher(config(), cache)
    cache_teacher(config(), cache, "--verify")
    assert "are what was written" in capsys.readouterr().out
    path = next(cache.glob("view_001/*/log_probs.npy"))
    rows = np.load(path)
    rows[:, 0] -= np.float16(0.5)
    np.save(path, rows)
    fails(capsys, lambda: cache_teacher(config(), cache, "--verify"), "log_probs.npy is damaged")
    checksums = path.with_name("checksums.json")
    content = json.loads(checksums.read_text())
    content["log_probs"] = hashlib.sha256(path.read_bytes()).hexdigest()
    checksums.write_text(json.dumps(content))
    fails(capsys, lambda: cache_teacher(config(), cache, "--verify"), "is not what the teacher answers now")


def test_a_disk_too_small_is_known_before(config, tmp_path, monkeypatch, capsys):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(build.shutil, "disk_usage", lambda path: usage(10**6, 10**6, 1000))
    fails(capsys, lambda: cache_teacher(config(), tmp_path / "cache"), "--out", "1 kB free")
    assert not (tmp_path / "cache").exists()


def test_the_likeliest_classes_are_what_the_teacher_answers(config, tmp_path, folder):
    cache = tmp_path / "cache"
    cache_teacher(config(), cache, "--top_k", "3")
    place = next(cache.glob("view_000/*"))
    stored = {path.stem: torch.from_numpy(np.load(path)) for path in place.glob("*.npy")}
    torch.manual_seed(1)
    data = ImageFolder(str(folder), image_size=28, num_workers=0, augment=AUGMENT, views=2, batch_size=120)
    data.setup("fit")
    loader = data.train_dataloader()
    data.answers = lambda views: {"image": torch.tensor(views)[:, 1]}
    images, _, place = next(iter(data.train_dataloader()))
    order = place["image"].argsort()
    assert len(loader) == 1
    # The teacher's weights are those that the config's seed draws, after the student's.
    pl.seed_everything(1, verbose=False)
    Backbone("deit_tiny_patch16_224", timm_kwargs={**RGB, "depth": 3})
    teacher = Backbone("cait_xxs24_224", timm_kwargs={**RGB, "embed_dim": 24, "depth": 12}).eval()
    with torch.no_grad():
        logits = teacher(images[order]).logits
    expected = logits.softmax(1).sort(dim=1, descending=True)
    assert torch.equal(stored["classes"].long(), expected.indices[:, :3])
    torch.testing.assert_close(stored["log_probs"].float().exp(), expected.values[:, :3], atol=1e-3, rtol=0)
    torch.testing.assert_close(stored["rest"], expected.values[:, 3:].sum(1), atol=1e-5, rtol=0)
