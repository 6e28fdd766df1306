import pickle

import numpy as np
import pytest
import torch
import torchvision

from distill_dynamics.data import CIFAR10, CIFAR100
from distill_dynamics.errors import UserError


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Small stand-ins in the published format, their checksums not asked for."""
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda path, md5=None: True)
    generator = np.random.default_rng(0)

    def write(folder, name, content):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / name).write_bytes(pickle.dumps(content))

    def images():
        return generator.integers(0, 256, (6, 3072), dtype=np.uint8)

    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        write("cifar-10-batches-py", name, {"data": images(), "labels": [0, 1, 2, 3, 4, 9]})
    write("cifar-10-batches-py", "batches.meta", {"label_names": [f"class {i}" for i in range(10)]})
    for name in ("train", "test"):
        write("cifar-100-python", name, {"data": images(), "fine_labels": [0, 1, 2, 3, 4, 99]})
    write("cifar-100-python", "meta", {"fine_label_names": [f"class {i}" for i in range(100)]})
    return tmp_path


@pytest.mark.parametrize(
    ("ours", "theirs", "classes"), [(CIFAR10, "CIFAR10", 10), (CIFAR100, "CIFAR100", 100)]
)
def test_the_images_are_torchvisions(files, ours, theirs, classes):
    data = ours(str(files), batch_size=6)
    data.setup("fit")
    reference = getattr(torchvision.datasets, theirs)(files, train=False)
    images, targets = next(iter(data.val_dataloader()))
    mean, std = (np.reshape(values, (3, 1, 1)) for values in (data.mean, data.std))
    expected = (reference.data.transpose(0, 3, 1, 2) / 255 - mean) / std
    np.testing.assert_allclose(images.numpy(), expected, rtol=1e-4, atol=1e-5)
    assert targets.tolist() == reference.targets
    assert data.num_classes == classes
    assert data.classes[7] == "class 7"
    images, _ = next(iter(data.train_dataloader()))
    assert images.shape == (6, 3, 32, 32)
    assert images.dtype == torch.float32


@pytest.mark.parametrize(
    ("module", "folder"), [(CIFAR10, "cifar-10-batches-py"), (CIFAR100, "cifar-100-python")]
)
def test_missing_files_are_one_line_that_names_the_folder(tmp_path, module, folder):
    with pytest.raises(UserError, match=f"{tmp_path / folder} is missing.*download: true"):
        module(str(tmp_path)).setup("fit")


def test_files_that_are_not_the_published_ones_are_refused(tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch", "batches.meta"]:
        (tmp_path / "cifar-10-batches-py" / name).write_bytes(b"something else")
    with pytest.raises(UserError, match="not the published ones"):
        CIFAR10(str(tmp_path)).setup("fit")


@pytest.mark.parametrize("download", [False, True])
def test_files_are_downloaded_only_when_asked_for(tmp_path, monkeypatch, download):
    calls = []
    monkeypatch.setattr(CIFAR10, "dataset", staticmethod(lambda *a, **k: calls.append((a, k))))
    CIFAR10(str(tmp_path), download=download).prepare_data()
    assert calls == ([((str(tmp_path),), {"download": True})] if download else [])


def test_a_download_that_fails_is_one_line(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("Error downloading x:\nTried y, got:\nno network")

    monkeypatch.setattr(CIFAR10, "dataset", staticmethod(fail))
    with pytest.raises(UserError, match=f"fetched into {tmp_path}: Error downloading x: Tried y"):
        CIFAR10(str(tmp_path), download=True).prepare_data()
