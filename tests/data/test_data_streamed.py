import errno
import os
import shutil
import sys
from types import SimpleNamespace

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from standins import trainer_on_cpu
from test_data_image_folder import error_of, write_images
from timm.data.distributed_sampler import RepeatAugSampler

from distill_dynamics import Backbone, Distiller
from distill_dynamics.data import ImageFolder, StreamedImageFolder
from distill_dynamics.data.streaming import storage
from distill_dynamics.data.streaming.convert import convert
from distill_dynamics.data.streaming.sampler import ChunkSampler
from distill_dynamics.errors import UserError

SMALL = {"image_size": 32, "batch_size": 4, "num_workers": 0, "window": 2}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """An image folder of 3 x 20 images in each split, and its conversion into chunks of about five."""
    root = tmp_path_factory.mktemp("data")
    write_images(root / "raw", images=20)
    convert(str(root / "raw"), str(root / "out"), chunk_mb=0.01)
    return root


def streamed(folder, rank=0, world=1, nodes=1, **settings):
    data = StreamedImageFolder(str(folder), **SMALL | settings)
    data.trainer = trainer_on_cpu(rank, world, num_nodes=nodes)
    data.setup("fit")
    return data


def plain(folders, **settings):
    data = ImageFolder(str(folders / "raw"), **{k: v for k, v in SMALL.items() if k != "window"} | settings)
    data.setup("fit")
    return data


def views(loader, epoch):
    loader.sampler.set_epoch(epoch)
    shown = [image.numpy().tobytes() for images, _ in loader for image in images]
    return dict(zip(list(loader.sampler), shown, strict=True))


def keys(folder, epoch=0, seed=0, **settings):
    sampler = streamed(folder, seed=seed, **settings).train_dataloader().sampler
    sampler.set_epoch(epoch)
    return list(sampler)


def assert_same_images(ours, theirs):
    """Probe sets, fingerprints, evaluation in its order, and an epoch's views, whatever their order."""
    for split in ("val", "train"):
        one, other = (data.probe_set(8, split=split) for data in (ours, theirs))
        assert one.probe_id == other.probe_id
        assert one.indices.tolist() == other.indices.tolist()
    assert ours.fingerprint() == theirs.fingerprint()
    for (a, y), (b, z) in zip(ours.val_dataloader(), theirs.val_dataloader(), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(y, z)
    one, other = views(ours.train_dataloader(), 3), views(theirs.train_dataloader(), 3)
    assert len(one) == 60
    assert one == other


@pytest.mark.parametrize(("cached", "num_workers"), [(False, 0), (True, 2)])
def test_probe_views_evaluation_and_fingerprint_are_those_of_the_image_folder(
    folders, tmp_path, cached, num_workers
):
    cache = str(tmp_path / "cache") if cached else None
    assert_same_images(streamed(folders / "out", num_workers=num_workers, cache_dir=cache), plain(folders))


def test_accuracy_and_loss_are_those_of_the_image_folder(folders, tmp_path):
    torch.manual_seed(0)
    vit = {"img_size": 32, "patch_size": 8, "num_classes": 3, "embed_dim": 16, "depth": 2, "num_heads": 2}
    student = Backbone("deit_tiny_patch16_224", timm_kwargs=vit)
    results = []
    for data in (plain(folders), streamed(folders / "out", cache_dir=str(tmp_path / "cache"))):
        trainer = pl.Trainer(
            accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path
        )
        results += trainer.validate(Distiller(student), datamodule=data, verbose=False)
    assert results[0] == results[1]
    assert 0 < results[0]["val/acc1"] < 100


def test_each_image_comes_once_over_ranks_nodes_and_workers(folders, tmp_path):
    world, nodes = 4, 2
    images = plain(folders, augment={"no_aug": True}).train_dataloader()
    expected = sorted(views(images, 0).values())
    seen, evaluated = [], []
    for rank in range(world):
        data = streamed(
            folders / "out",
            rank,
            world,
            nodes,
            batch_size=1,
            augment={"no_aug": True},
            num_workers=1 + rank % 2,
            cache_dir=str(tmp_path / f"node_{rank // (world // nodes)}"),
        )
        seen += views(data.train_dataloader(), 0).values()
        for batch, targets in data.val_dataloader():
            evaluated += [image.numpy().tobytes() for image in batch[targets >= 0]]
    assert sorted(seen) == expected
    theirs = [image.numpy().tobytes() for batch, _ in plain(folders).val_dataloader() for image in batch]
    assert sorted(evaluated) == sorted(theirs)


def test_the_order_is_a_function_of_seed_epoch_and_nodes(folders):
    out = folders / "out"
    first = keys(out)
    assert first == keys(out)
    others = [keys(out, epoch=1), keys(out, seed=1), keys(out, nodes=2, world=2)]
    images = {tuple(key.image for key in order) for order in [first, *others]}
    assert len(images) == 4
    # The ranks of one node take turns at the order of one rank: a global batch is the same for any number.
    by_rank = [keys(out, rank=rank, world=4) for rank in range(4)]
    assert [key for turn in zip(*by_rank, strict=True) for key in turn] == first
    # A run that is continued in the middle of an epoch draws the rest of it.
    sampler = streamed(out, rank=1, world=2).train_dataloader().sampler
    sampler.seen = (0, 11)
    assert list(sampler) == keys(out, rank=1, world=2)[11:]
    sampler.set_epoch(1)
    assert len(list(sampler)) == 30


def test_what_the_order_depends_on_is_known_by_name(folders, tmp_path):
    """Or a run could be continued in the middle of an epoch with images that it has seen."""
    convert(str(folders / "raw"), str(tmp_path), chunk_mb=0.02)

    def named(folder=folders / "out", **settings):
        depends = streamed(folder, **settings).order_depends_on()
        return keys(folder, **settings), {k: v for k, v in depends.items() if k != "conversion"}

    order, depends = named()
    for name, settings in {
        "seed": {"seed": 1}, "window": {"window": 3}, "repeats": {"repeats": 3},
        "nodes": {"nodes": 2, "world": 2},
    }.items():  # fmt: skip
        other = named(**settings)
        assert other[0] != order
        assert {k for k in depends if depends[k] != other[1][k]} == {name}
    assert named(num_workers=1, batch_size=3) == (order, depends)
    other = streamed(tmp_path)
    assert keys(tmp_path) != order
    assert other.order_depends_on()["data"] == depends["data"]
    assert (
        other.order_depends_on()["conversion"] != streamed(folders / "out").order_depends_on()["conversion"]
    )


def spread(sampler):
    """From the first to the last image of a chunk, how many images are drawn, at most over the chunks."""
    places = [sampler.source.places[key.image] for key in sampler]
    chunk = np.searchsorted(sampler.source.chunks.bounds, places, side="right")
    return max(np.ptp(np.flatnonzero(chunk == one)) for one in set(chunk)), len(places)


class Made:
    """10,000 images in chunks of 100, none of which is ever read."""

    targets = np.zeros(10_000, np.int64)
    places = np.random.default_rng(0).permutation(10_000)
    chunks = SimpleNamespace(bounds=np.arange(0, 10_001, 100))


@pytest.mark.parametrize("window", [1, 8])
def test_a_chunk_is_done_with_after_a_window(window):
    longest, _ = spread(ChunkSampler(Made(), window=window, seed=0))
    # A chunk's images are moved by up to `window` chunks of 100 images, among others that are moved likewise.
    assert 100 * (window - 1) * 0.8 < longest < 100 * (window + 1) * 1.1
    order = [key.image for key in ChunkSampler(Made(), window=window, seed=0)]
    assert sorted(order) == list(range(10_000))


def test_nodes_share_out_the_chunks():
    used = []
    for node in range(4):
        sampler = ChunkSampler(Made(), window=4, nodes=4, rank=2 * node, world=8, seed=0)
        used.append({int(Made.places[key.image]) // 100 for key in sampler})
    assert sum(map(len, used)) <= 100 + 3  # a chunk at a boundary belongs to two
    assert len(set.union(*used)) == 100


@pytest.mark.parametrize(("world", "nodes"), [(1, 1), (4, 1), (8, 2)])
def test_repeats_come_as_timm_lays_them_out(world, nodes):
    drawn = []
    for rank in range(world):
        sampler = ChunkSampler(Made(), window=4, nodes=nodes, rank=rank, world=world, repeats=3, seed=0)
        assert len(list(sampler)) == len(sampler) == len(RepeatAugSampler(range(10_000), world, rank, 3))
        drawn.append(list(sampler))
    of_node = world // nodes
    for node in range(nodes):
        turns = [
            key for turn in zip(*drawn[node * of_node : (node + 1) * of_node], strict=True) for key in turn
        ]
        assert [key.repeat for key in turns] == [i % 3 for i in range(len(turns))]
        assert all(a.image == b.image for a, b in zip(turns[::3], turns[1::3], strict=False))
    everything = [key for keys in drawn for key in keys]
    assert len(set(everything)) == len(everything)


def fetches(monkeypatch):
    """Counts how often each chunk is copied to a cache."""
    counts = {}
    copy = shutil.copyfile

    def counting(remote, local):
        if remote.endswith(".bin"):
            counts[remote] = counts.get(remote, 0) + 1
        copy(remote, local)

    monkeypatch.setattr(storage.shutil, "copyfile", counting)
    return counts


def size_of(folder):
    return sum(path.stat().st_size for path in folder.rglob("*.bin"))


def test_a_cache_smaller_than_the_data_keeps_to_its_limit_and_fetches_a_chunk_once_an_epoch(
    folders, tmp_path, monkeypatch
):
    counts = fetches(monkeypatch)
    cache, out = tmp_path / "cache", tmp_path / "out"
    write_images(tmp_path / "raw", images=100)
    convert(str(tmp_path / "raw"), str(out), chunk_mb=0.03)
    whole = size_of(out / "train")
    data = streamed(out, cache_dir=str(cache), cache_gb=0.4 * whole / 1e9, augment={"no_aug": True})
    names = data.sources["train"].chunks.names
    loader = data.train_dataloader()
    expected = views(plain(tmp_path, augment={"no_aug": True}).train_dataloader(), 0)
    for epoch in range(2):
        counts.clear()
        loader.sampler.set_epoch(epoch)
        shown = [image.numpy().tobytes() for images, _ in loader for image in images]
        assert sorted(shown) == sorted(expected.values())
        assert size_of(cache) <= 0.4 * whole
        # Once each, but for what the end of the last epoch left, and one that may have been let go too early.
        assert 0.6 * len(names) <= sum(counts.values()) <= 1.2 * len(names)
    # The limit is that of the folder, whatever data sets it is for; what else is there is left alone.
    (cache / "other" / "train").mkdir(parents=True)
    (cache / "other" / "train" / "mine.bin").write_bytes(bytes(whole))
    convert(str(tmp_path / "raw"), str(tmp_path / "again"), chunk_mb=0.03)
    data = streamed(tmp_path / "again", cache_dir=str(cache), cache_gb=0.4 * whole / 1e9)
    list(data.val_dataloader())
    assert 0.3 * whole < size_of(cache) - whole <= 0.4 * whole
    assert (cache / "other" / "train" / "mine.bin").exists()
    with pytest.raises(UserError, match=r"data\.cache_gb: .* is too little for data\.window 2"):
        streamed(out, cache_dir=str(cache), cache_gb=0.1 * whole / 1e9)


def test_all_is_kept_without_a_limit_and_a_second_run_fetches_nothing(folders, tmp_path, monkeypatch):
    counts = fetches(monkeypatch)
    for run in range(2):
        data = streamed(folders / "out", cache_dir=str(tmp_path / "cache"))
        list(data.train_dataloader()), list(data.val_dataloader())
        sources = data.sources.values()
        wanted = {f"{s.chunks.place}/{name}": 1 for s in sources for name in s.chunks.names}
        assert counts == (wanted if run == 0 else {})
        counts.clear()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_chunk_that_is_not_to_be_had_is_one_line_even_if_unreadable_images_are_skipped(
    folders, tmp_path, num_workers
):
    out = tmp_path / "out"
    convert(str(folders / "raw"), str(out), chunk_mb=0.01)
    (out / "val" / "chunk-0-1.bin").unlink()
    for cache in (None, str(tmp_path / "cache")):
        data = streamed(out, num_workers=num_workers, cache_dir=cache, skip_unreadable=True)
        message = error_of(data.val_dataloader())
        assert message.startswith("data.data_dir: ")
        assert "val/chunk-0-1.bin" in message
        assert "\n" not in message


def test_a_chunk_that_is_cut_off_is_named_with_its_image(folders, tmp_path):
    out = tmp_path / "out"
    convert(str(folders / "raw"), str(out), chunk_mb=0.01)
    last = sorted((out / "val").glob("*.bin"), key=lambda path: int(path.stem.split("-")[-1]))[-1]
    os.truncate(last, last.stat().st_size - 10)
    message = error_of(streamed(out).val_dataloader())
    assert message.startswith(f"unreadable image {out}/val/cat/9.JPEG: {last.name} is cut off")


def test_a_cache_that_cannot_take_a_chunk_is_one_line(folders, tmp_path, monkeypatch):
    data = streamed(folders / "out", cache_dir=str(tmp_path / "cache"))

    def full(remote, local):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(local))

    with monkeypatch.context() as patch:
        patch.setattr(storage.shutil, "copyfile", full)
        message = error_of(data.train_dataloader())
    assert message.startswith(f"data.cache_dir: no space left in {tmp_path}/cache/")
    assert message.endswith("(data.cache_gb limits the cache)")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=rf"^data\.cache_dir: {tmp_path}/file/.*: Not a directory$"):
        streamed(folders / "out", cache_dir=str(tmp_path / "file"))


def test_what_is_missing_is_one_line(folders, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"data\.cache_dir: name a folder on a local disk"):
        StreamedImageFolder("s3://bucket/data")
    with pytest.raises(UserError, match=r"holds no finished conversion.*convert"):
        streamed(folders / "raw")
    with pytest.raises(UserError, match=r"data\.window: 0"):
        StreamedImageFolder(str(folders / "out"), window=0)
    for name in [name for name in sys.modules if name.startswith("litdata")]:
        monkeypatch.setitem(sys.modules, name, None)
    streamed(folders / "out", cache_dir=str(tmp_path / "cache")).probe_set(2)  # folders need no litdata
    with pytest.raises(UserError, match=r"data\.data_dir: s3://bucket.*distill_dynamics\[streaming\]"):
        streamed("s3://bucket/data", cache_dir=str(tmp_path / "cache"))
