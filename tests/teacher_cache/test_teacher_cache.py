"""A run with a cache is a run with the teacher; what is not this run's cache is refused."""

import hashlib
import json
import shutil
from collections import namedtuple
from contextlib import contextmanager

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from caching import (  # noqa: F401 - fixtures
    AUGMENT,
    ONE_STEP,
    RGB,
    Setup,
    _work_goes_with_depth,
    folder,
    same_cache,
    small_blocks,
)

from distill_dynamics import Backbone, Term
from distill_dynamics.data import ImageFolder
from distill_dynamics.errors import UserError
from distill_dynamics.losses import SpectralKD
from distill_dynamics.teacher_cache import files, plan

# ruff: noqa: F811 - fixtures are imported

TERMS = ("loss", "loss_ce", "loss_kd", "loss_both", "loss_projector")


def numbers(rows):
    return np.array([[row[f"train/{name}"] for name in TERMS] for row in rows if "train/loss" in row])


@pytest.fixture(scope="module")
def built(folder, tmp_path_factory):
    """A cache of all classes and one of three, to be read and not to be changed."""
    root = tmp_path_factory.mktemp("built")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "operations", lambda views, layers, logits: layers[-1] if layers else 12)
        Setup(folder).cache(root / "all")
        Setup(folder).cache(root / "three", top_k=3)
    return root


@pytest.fixture
def copied(built, tmp_path):
    """A copy of the cache of all classes, which may be changed."""
    return shutil.copytree(built / "all", tmp_path / "cache")


def test_a_run_with_the_cache_is_a_run_with_the_teacher(folder, tmp_path, monkeypatch, small_blocks, capsys):
    setup = Setup(folder)
    online = setup.fit()
    setup.cache(tmp_path / "cache")
    printed = capsys.readouterr().out
    assert "computed while training" in printed
    assert "stored, " in printed
    assert "10 of 10 blocks" not in printed
    assert len(list((tmp_path / "cache" / "done").iterdir())) == 10

    asked = []
    forward = Backbone.forward

    def watched(self, images, layers=(), logits=True, **others):
        if self.name.startswith("cait"):
            asked.append((len(images), tuple(layers), logits))
        return forward(self, images, layers, logits, **others)

    monkeypatch.setattr(Backbone, "forward", watched)
    cached = setup.fit(tmp_path / "cache")
    tried_first = 2  # images that go through both models before anything is written
    floors = (7, (11, 12), False)  # of ProjectorKD, once, on the images that losses are fitted to
    assert {call for call in asked if call[0] > tried_first} == {(16, (1,), False), floors}
    np.testing.assert_allclose(numbers(cached), numbers(online), rtol=2e-3, atol=5e-5)
    # Before an update the two differ by nothing but the rounding of what is stored.
    one = Setup(folder, trainer=ONE_STEP)
    np.testing.assert_allclose(numbers(one.fit(tmp_path / "cache")), numbers(one.fit()), rtol=1e-5, atol=5e-5)
    assert cached[0]["teacher/acc1"] == online[0]["teacher/acc1"]


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
        shown = [tuple(row.tolist()) for _, _, answers in loader for row in answers["view"]]
        assert shown == expected


def test_a_build_that_was_killed_goes_on(folder, tmp_path, monkeypatch, small_blocks):
    setup, whole, cut = Setup(folder), tmp_path / "whole", tmp_path / "cut"
    setup.cache(whole)
    write, batches = files.Writer.write, []

    def killed(self, rows):
        if len(batches) == 12:
            raise MemoryError
        batches.append(len(rows))
        write(self, rows)

    with monkeypatch.context() as patch:
        patch.setattr(files.Writer, "write", killed)
        with pytest.raises(MemoryError):
            setup.cache(cut)
    written = list((cut / "done").iterdir())
    assert len(written) == sum(batches) // 24 == 3
    before = [path.stat().st_mtime_ns for path in written]
    setup.cache(cut)
    assert [path.stat().st_mtime_ns for path in written] == before
    same_cache(whole, cut)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": {"view_seed": 3}}, r"data.view_seed 0, .*here it is 3"),
        ({"data": {"augment": {"hflip": 0.5}}}, r"data.augment .*'hflip': 0.5"),
        ({"data": {"views": 3}}, r"data.views 2, .*here it is 3"),
        ({"seed": 2}, r"teacher.weights"),
        ({"trainer": {"precision": "bf16-mixed"}}, r"teacher's precision '32-true', .*'bf16-mixed'"),
        ({"model": {"teacher_precision": "16-mixed"}}, r"teacher's precision '32-true', .*'16-mixed'"),
        ({"model": {"terms": {"deep": Term(SpectralKD, pairs=[(1, 7)])}}}, "no map of the teacher's block 7"),
    ],
)
def test_what_does_not_match_is_refused_with_the_line_that_differs(folder, built, changes, words):
    with pytest.raises(UserError, match=words) as error:
        Setup(folder, **changes).fit(built / "all")
    assert "\n" not in str(error.value)


def test_a_cache_that_is_not_whole_is_refused(folder, copied, tmp_path):
    def refused(words, cache=copied):
        with pytest.raises(UserError, match=words) as error:
            Setup(folder).fit(cache)
        assert "\n" not in str(error.value)

    path = copied / "view_001.npy"
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    refused(r"view_001.npy is damaged \(cut off\?\)")
    path.unlink()
    refused("view_001.npy: No such file")
    path.write_bytes(content)
    next(copied.glob("done/view_001*")).unlink()
    refused(r"1 of 2 blocks are missing \(the first: rows 0 to 119 of view 1\)")
    refused("cache.json does not exist", tmp_path)


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


def less(rows):
    rows["log_probs"][:, 0] -= np.float16(0.5)


def not_numbers(rows):
    rows["log_probs"] -= 3
    rows["log_probs"][:, 1] = np.nan


def no_maps(rows):
    rows[next(name for name in rows.dtype.names if name.startswith("block"))] = 0


def one_class(rows):
    rows["classes"] = rows["classes"][:, :1]


def other_classes(rows):
    rows["classes"] = (rows["classes"] + 1) % 10


def no_rest(rows):
    rows["rest"] = 0


@pytest.mark.parametrize(
    ("name", "changes"),
    [("all", [less, not_numbers, no_maps]), ("three", [one_class, other_classes, no_rest])],
)
def test_verifying_finds_foreign_answers(folder, built, tmp_path, capsys, name, changes):
    cache, setup = shutil.copytree(built / name, tmp_path / "cache"), Setup(folder)
    for change in changes:
        with forged(cache, change), pytest.raises(UserError, match="is not what the teacher answers now"):
            setup.cache(cache, verify=True)
    setup.cache(cache, verify=True)
    assert "2 blocks are what was written" in capsys.readouterr().out


def test_verifying_finds_damage_and_says_how_to_mend_it(folder, copied):
    path = copied / "view_001.npy"
    content = bytearray(path.read_bytes())
    content[-1000] ^= 4
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"view_001.npy: rows 0 to 119 .*delete "):
        Setup(folder).cache(copied, verify=True)
    (copied / "done" / "view_001_00000.json").unlink()
    Setup(folder).cache(copied)
    Setup(folder).cache(copied, verify=True)


def test_a_cache_serves_fewer_terms_and_is_verified_as_far_as_they_go(folder, copied, capsys):
    few = Setup(folder, model={"terms": {}}, trainer=ONE_STEP)
    few.cache(copied, verify=True)
    assert "not computed, for want of their terms: block_" in capsys.readouterr().out
    few.fit(copied)
    with pytest.raises(UserError, match=r"--out: .*terms that this config lacks"):
        few.cache(copied)
    with pytest.raises(UserError, match=r"--top_k: .*begun with 10"):
        Setup(folder).cache(copied, top_k=3)


def test_a_disk_too_small_is_known_before(folder, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(plan.shutil, "disk_usage", lambda path: usage(10**6, 10**6, 1000))
    with pytest.raises(UserError, match=r"--out: .*1\.00kB free"):
        Setup(folder).cache(tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_the_likeliest_classes_are_what_the_teacher_answers(built, folder):
    rows = np.load(built / "three" / "view_000.npy")
    stored = {name: torch.from_numpy(rows[name].copy()) for name in ("log_probs", "classes", "rest")}
    torch.manual_seed(1)
    data = ImageFolder(str(folder), image_size=28, num_workers=0, augment=AUGMENT, views=2, batch_size=120)
    data.setup("fit")
    data.answers = lambda views: {"image": torch.tensor(views)[:, 1]}
    ((images, _, place),) = data.train_dataloader()
    order = place["image"].argsort()
    # The teacher's weights are those that the seed draws, after the student's.
    pl.seed_everything(1, verbose=False)
    Backbone("deit_tiny_patch16_224", timm_kwargs={**RGB, "depth": 3})
    teacher = Backbone("cait_xxs24_224", timm_kwargs={**RGB, "embed_dim": 24, "depth": 12}).eval()
    with torch.no_grad():
        logits = teacher(images[order]).logits
    expected = logits.softmax(1).sort(dim=1, descending=True)
    assert torch.equal(stored["classes"].long(), expected.indices[:, :3])
    torch.testing.assert_close(stored["log_probs"].float().exp(), expected.values[:, :3], atol=1e-3, rtol=0)
    torch.testing.assert_close(stored["rest"], expected.values[:, 3:].sum(1), atol=1e-5, rtol=0)


def test_the_same_command_builds_the_same_files(built, folder, tmp_path):
    Setup(folder).cache(tmp_path / "again", top_k=3)
    one, other = (
        {str(file.relative_to(place)): file.read_bytes() for file in place.rglob("*") if file.is_file()}
        for place in (built / "three", tmp_path / "again")
    )
    assert {"cache.json", "rows.npy", "view_000.npy"} <= one.keys()
    assert [name for name in one.keys() | other.keys() if one.get(name) != other.get(name)] == []
