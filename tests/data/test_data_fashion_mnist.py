import gzip
import struct
import sys
import time
import zipfile
from hashlib import sha256

import numpy as np
import pytest
import torch
import torchvision
from scripts import make_sample
from torchvision.datasets.mnist import read_sn3_pascalvincent_tensor

from distill_dynamics.data import FashionMNIST, FashionMNISTSample, fashion_mnist
from distill_dynamics.data.fashion_mnist import DEBIAN, FILES, SAMPLE, find_files, read_idx, read_split
from distill_dynamics.errors import UserError

official = pytest.mark.skipif(
    find_files(DEBIAN) != DEBIAN,
    reason=f"Debian's package dataset-fashion-mnist is not installed in {DEBIAN}",
)


def write_idx(path, array):
    content = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def write_files(folder, ending=""):
    generator = np.random.default_rng(0)
    for (images, labels), size in zip(FILES.values(), (40, 20), strict=True):
        write_idx(folder / f"{images}{ending}", generator.integers(0, 256, (size, 28, 28), dtype=np.uint8))
        write_idx(folder / f"{labels}{ending}", (np.arange(size) % 10).astype(np.uint8))


@pytest.fixture
def no_debian(monkeypatch, tmp_path):
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "none")


@pytest.mark.parametrize("shape", [(5,), (3, 28, 28), (0, 28, 28)])
def test_idx_files_read_as_torchvision_reads_them(tmp_path, shape):
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    plain, zipped = write_idx(tmp_path / "a", array), write_idx(tmp_path / "a.gz", array)
    if array.size:
        assert np.array_equal(read_idx(plain), read_sn3_pascalvincent_tensor(str(plain)).numpy())
    assert np.array_equal(read_idx(plain), array)
    assert np.array_equal(read_idx(zipped), array)


@pytest.mark.parametrize("damage", ["cut", "cut gzip", "text", "empty", "other type"])
def test_a_broken_file_is_one_line_that_names_it(tmp_path, damage):
    path = write_idx(
        tmp_path / ("a.gz" if damage == "cut gzip" else "a"), np.zeros((9, 28, 28), dtype=np.uint8)
    )
    content = path.read_bytes()
    new = {"text": b"<html></html>", "empty": b"", "other type": b"\0\0\x0d" + content[3:]}
    path.write_bytes(new.get(damage, content[:-10]))
    with pytest.raises(UserError, match=f"^{path}: not ") as caught:
        read_idx(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("folder", [".", "raw", "FashionMNIST/raw"])
def test_files_are_found_gzipped_or_not_in_each_layout(tmp_path, no_debian, folder, ending):
    write_files(tmp_path / folder, ending)
    data = FashionMNIST(str(tmp_path), batch_size=8)
    data.setup("fit")
    assert len(data.sources["train"].targets) == 40
    assert len(data.sources["val"].targets) == 20
    images, targets = next(iter(data.val_dataloader()))
    assert images.shape == (8, 1, 28, 28)
    assert targets.tolist() == [0, 1, 2, 3, 4, 5, 6, 7]


def test_torchvisions_own_reader_agrees(tmp_path, no_debian):
    write_files(tmp_path / "FashionMNIST" / "raw")
    data = FashionMNIST(str(tmp_path))
    data.setup("fit")
    for split in ("train", "val"):
        theirs = torchvision.datasets.FashionMNIST(tmp_path, train=split == "train")
        assert np.array_equal(data.sources[split].pixels, theirs.data.numpy())
        assert np.array_equal(data.sources[split].targets, theirs.targets.numpy())
    assert data.classes == theirs.classes


def test_missing_files_are_one_line_that_says_what_to_do(tmp_path, no_debian):
    write_files(tmp_path)
    (tmp_path / FILES["val"][1]).unlink()
    with pytest.raises(UserError, match=f"neither in {tmp_path}, .*download: true"):
        FashionMNIST(str(tmp_path)).setup("fit")


def test_files_of_another_data_set_are_refused(tmp_path, no_debian):
    write_files(tmp_path)
    write_idx(tmp_path / FILES["train"][1], np.zeros(39, dtype=np.uint8))
    with pytest.raises(UserError, match="not Fashion-MNIST's"):
        FashionMNIST(str(tmp_path)).setup("fit")


@pytest.mark.parametrize("present", [False, True])
@pytest.mark.parametrize("download", [False, True])
def test_files_are_downloaded_only_when_asked_for_and_missing(
    tmp_path, no_debian, monkeypatch, download, present
):
    calls = []
    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", lambda *a, **k: calls.append((a, k)))
    if present:
        write_files(tmp_path)
    FashionMNIST(str(tmp_path), download=download).prepare_data()
    assert calls == ([((str(tmp_path),), {"download": True})] if download and not present else [])


@official
def test_debians_files_serve_when_data_dir_has_none(tmp_path):
    data = FashionMNIST(str(tmp_path))
    data.setup("fit")
    train, val = data.sources["train"], data.sources["val"]
    assert train.pixels.shape == (60000, 28, 28)
    assert np.bincount(train.targets).tolist() == [6000] * 10
    assert np.bincount(val.targets).tolist() == [1000] * 10
    assert data.mean == pytest.approx((train.pixels.mean() / 255,), abs=1e-4)
    assert data.std == pytest.approx((train.pixels.std() / 255,), abs=1e-4)


def test_the_sample_is_balanced_small_and_what_its_readme_states():
    content = SAMPLE.read_bytes()
    readme = SAMPLE.with_name("README.md").read_text(encoding="utf-8")
    assert len(content) <= 3_000_000
    assert f"{len(content):,} bytes" in readme
    assert sha256(content).hexdigest() in readme
    for words in ("6,400", "1,000", "MIT License", "Copyright © 2017 Zalando SE", "1708.07747"):
        assert words in readme
    data = FashionMNISTSample(batch_size=64)
    data.setup("fit")
    assert np.bincount(data.sources["train"].targets).tolist() == [640] * 10
    assert np.bincount(data.sources["val"].targets).tolist() == [100] * 10
    assert data.num_classes == 10
    images, targets = next(iter(data.train_dataloader()))
    assert images.shape == (64, 1, 28, 28)
    assert targets.dtype == torch.int64
    everything = torch.cat([images for images, _ in data.val_dataloader()])
    assert abs(everything.mean().item()) < 0.05
    assert everything.std().item() == pytest.approx(1, abs=0.05)


@official
def test_the_sample_holds_official_images_and_no_training_image_validates():
    with np.load(SAMPLE, allow_pickle=False) as arrays:
        for split in ("train", "val"):
            images, labels = read_split(DEBIAN, split)
            indices = arrays[f"{split}_indices"]
            assert len(set(indices.tolist())) == len(indices)
            assert np.array_equal(images[indices], arrays[f"{split}_images"])
            assert np.array_equal(labels[indices], arrays[f"{split}_labels"])


@pytest.mark.slow  # that its arrays are official images, the test above says
@official
def test_the_script_makes_the_packaged_file(tmp_path, monkeypatch, capsys):
    out = tmp_path / "sample.npz"
    monkeypatch.setattr(sys, "argv", ["make_sample", "--source", str(DEBIAN), "--out", str(out)])
    make_sample.main()
    with np.load(out, allow_pickle=False) as ours, np.load(SAMPLE, allow_pickle=False) as packaged:
        assert ours.files == packaged.files
        assert all(np.array_equal(ours[name], packaged[name]) for name in ours.files)
    assert sha256(out.read_bytes()).hexdigest() in capsys.readouterr().out


def test_a_written_sample_carries_no_time_and_numpy_reads_it(tmp_path, monkeypatch):
    arrays = {"a": np.arange(1000, dtype=np.uint8), "b": np.eye(3)}
    make_sample.write_npz(tmp_path / "one.npz", arrays)
    monkeypatch.setattr(time, "time", lambda: 1e9)
    make_sample.write_npz(tmp_path / "two.npz", arrays)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    with zipfile.ZipFile(tmp_path / "one.npz") as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    with np.load(tmp_path / "one.npz", allow_pickle=False) as read:
        assert all(np.array_equal(read[name], arrays[name]) for name in arrays)
