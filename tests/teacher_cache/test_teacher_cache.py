import hashlib
import json
import re
from collections import namedtuple
from contextlib import contextmanager

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from conftest import VIT
from PIL import Image
from test_fit import fit, rows

from distill_dynamics.cli.main import main
from distill_dynamics.data import ImageFolder
from distill_dynamics.models.backbone import Backbone
from distill_dynamics.runs import lease
from distill_dynamics.teacher_cache import blocks, plan

pytestmark = pytest.mark.usefixtures("no_report")

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
    # The teachers here are drawn at random, which is warned of, in a frame.
    framed = re.compile(r"!{80}\nWARNING: the teacher has [^\n]*\n!{80}\n")
    said = framed.sub("", capsys.readouterr().err).strip()
    assert exit_.value.code == 2
    assert said.count("\n") == 0, said
    assert all(word in said for word in words), said


@pytest.fixture(autouse=True)
def _no_lease_of_the_test_before():
    """`main` of one process is run again and again here."""
    yield
    lease.release()


@pytest.fixture(autouse=True)
def _work_goes_with_depth(monkeypatch):
    """As it does for models that are not tiny."""
    monkeypatch.setattr(plan, "operations", lambda views, layers, logits: layers[-1] if layers else 12)


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(blocks, "LEAST_ROWS", 25)


def test_a_run_with_the_cache_is_a_run_with_the_teacher(config, tmp_path, monkeypatch, small_blocks, capsys):
    fit(config(), "--name", "online")
    cache_teacher(config(), tmp_path / "cache")
    said = capsys.readouterr().out
    assert "computed while training" in said
    assert "stored, " in said
    assert "10 of 10 blocks" not in said
    assert len(list((tmp_path / "cache" / "done").iterdir())) == 10

    asked = []
    forward = Backbone.forward

    def watched(self, images, layers=(), logits=True, **others):
        if self.name.startswith("cait"):
            asked.append((len(images), tuple(layers), logits))
        return forward(self, images, layers, logits, **others)

    monkeypatch.setattr(Backbone, "forward", watched)
    fit(config(), "--name", "cached", "--model.teacher_cache", str(tmp_path / "cache"))
    tried_first = 2  # images that go through both models before anything is written
    assert {call for call in asked if call[0] > tried_first} == {(16, (1,), False)}

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
    once = {"trainer__limit_train_batches": 0.15, "trainer__max_epochs": 1}  # of 7 batches 1
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


def test_a_build_that_was_killed_goes_on(config, tmp_path, monkeypatch, small_blocks):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    cache_teacher(config(), whole)
    write, batches = blocks.Writer.write, []

    def killed(self, rows):
        if len(batches) == 12:
            raise KeyboardInterrupt
        batches.append(len(rows))
        write(self, rows)

    monkeypatch.setattr(blocks.Writer, "write", killed)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        cache_teacher(config(), cut)
    written = list((cut / "done").iterdir())
    assert len(written) == sum(batches) // 24 == 3
    before = [path.stat().st_mtime_ns for path in written]
    monkeypatch.setattr(blocks.Writer, "write", write)
    cache_teacher(config(), cut)
    assert [path.stat().st_mtime_ns for path in written] == before
    same_cache(whole, cut)


def same_cache(one, other):
    files = sorted(path.relative_to(one) for path in [*one.glob("*.npy"), *one.glob("done/*")])
    assert files == sorted(path.relative_to(other) for path in [*other.glob("*.npy"), *other.glob("done/*")])
    for file in files:
        assert (one / file).read_bytes() == (other / file).read_bytes()


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
    fails(capsys, run("--trainer.precision", "bf16-mixed"), "teacher's precision '32-true'", "'bf16-mixed'")
    fails(capsys, run("--model.teacher_precision", "16-mixed"), "teacher's precision '32-true'", "'16-mixed'")
    terms = {"deep": {"loss": {"class_path": f"{LOSSES}.SpectralKD"}, "pairs": [[1, 7]]}}
    fails(capsys, run(model__terms=terms), "no map of the teacher's block 7")
    path = cache / "view_001.npy"
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    fails(capsys, run(), "view_001.npy is damaged (cut off?)")
    path.unlink()
    fails(capsys, run(), "view_001.npy: No such file")
    path.write_bytes(content)
    next(cache.glob("done/view_001*")).unlink()
    fails(capsys, run(), "1 of 2 blocks are missing (the first: rows 0 to 119 of view 1)")
    fails(capsys, lambda: fit(config(), "--model.teacher_cache", str(tmp_path)), "cache.json does not exist")
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())


@contextmanager
def forged(cache, change, view=0):
    """A cache whose rows someone has changed, checksums and all, for as long as the block lasts."""
    path, record = cache / f"view_{view:03d}.npy", next((cache / "done").glob(f"view_{view:03d}_*"))
    before = path.read_bytes(), record.read_bytes()
    rows = np.load(path)
    change(rows)
    np.save(path, rows)
    record.write_text(json.dumps({"sha256": hashlib.sha256(rows.tobytes()).hexdigest()}))
    yield
    path.write_bytes(before[0])
    record.write_bytes(before[1])


def maps_of(rows):
    return [name for name in rows.dtype.names if name.startswith("block")]


def less(rows):
    rows["log_probs"][:, 0] -= np.float16(0.5)


def not_numbers(rows):
    rows["log_probs"] -= 3
    rows["log_probs"][:, 1] = np.nan


def no_maps(rows):
    rows[maps_of(rows)[0]] = 0


def one_class(rows):
    rows["classes"] = rows["classes"][:, :1]


def other_classes(rows):
    rows["classes"] = (rows["classes"] + 1) % 10


def no_rest(rows):
    rows["rest"] = 0


@pytest.mark.parametrize(
    ("top_k", "changes"), [(100, [less, not_numbers, no_maps]), (3, [one_class, other_classes, no_rest])]
)
def test_verifying_finds_foreign_answers(config, tmp_path, capsys, top_k, changes):
    cache = tmp_path / "cache"
    cache_teacher(config(), cache, "--top_k", str(top_k))

    def verify():
        cache_teacher(config(), cache, "--verify")

    for change in changes:
        with forged(cache, change):
            fails(capsys, verify, "is not what the teacher answers now")
    verify()
    assert "2 blocks are what was written" in capsys.readouterr().out


def test_verifying_finds_damage_and_says_how_to_mend_it(config, tmp_path, capsys):
    cache = tmp_path / "cache"
    cache_teacher(config(), cache)
    path = cache / "view_001.npy"
    content = bytearray(path.read_bytes())
    content[-1000] ^= 4
    path.write_bytes(content)
    fails(
        capsys, lambda: cache_teacher(config(), cache, "--verify"), "view_001.npy: rows 0 to 119", "delete "
    )
    (cache / "done" / "view_001_00000.json").unlink()
    cache_teacher(config(), cache)
    cache_teacher(config(), cache, "--verify")


def test_a_cache_serves_fewer_terms_and_is_verified_as_far_as_they_go(config, tmp_path, capsys):
    cache = tmp_path / "cache"
    cache_teacher(config(), cache)
    few = config(model__terms={}, trainer__max_epochs=1)
    cache_teacher(few, cache, "--verify")
    assert "not computed, for want of their terms: block_" in capsys.readouterr().out
    fit(few, "--name", "few", "--model.teacher_cache", str(cache))
    fails(capsys, lambda: cache_teacher(few, cache), "--out", "terms that this config lacks")
    fails(capsys, lambda: cache_teacher(config(), cache, "--top_k", "3"), "--top_k", "begun with 10")


def test_a_disk_too_small_is_known_before(config, tmp_path, monkeypatch, capsys):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(plan.shutil, "disk_usage", lambda path: usage(10**6, 10**6, 1000))
    fails(capsys, lambda: cache_teacher(config(), tmp_path / "cache"), "--out", "1 kB free")
    assert not (tmp_path / "cache").exists()


def test_the_likeliest_classes_are_what_the_teacher_answers(config, tmp_path, folder):
    cache = tmp_path / "cache"
    cache_teacher(config(), cache, "--top_k", "3")
    rows = np.load(cache / "view_000.npy")
    stored = {name: torch.from_numpy(rows[name].copy()) for name in ("log_probs", "classes", "rest")}
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


def test_the_same_command_builds_the_same_files(config, tmp_path):
    for name in ("one", "other"):
        cache_teacher(config(), tmp_path / name, "--top_k", "3")
    one, other = (
        {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        for folder in (tmp_path / "one", tmp_path / "other")
    )
    assert {"cache.json", "rows.npy", "view_000.npy"} <= one.keys()
    assert [name for name in one.keys() | other.keys() if one.get(name) != other.get(name)] == []
