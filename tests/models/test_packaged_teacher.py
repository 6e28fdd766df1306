"""What is said of the packaged teacher holds for the weights as they are stored."""

import json
from importlib import resources

import numpy as np
import pytest
import safetensors
import timm
import torch
from conftest import ROOT

from distill_dynamics import Backbone
from distill_dynamics.data import FashionMNIST, FashionMNISTSample
from distill_dynamics.data.fashion_mnist import find_files
from distill_dynamics.dynamics import Profile, profile_model
from distill_dynamics.dynamics.signature import signature

FOLDER = resources.files("distill_dynamics") / "weights"
WEIGHTS = FOLDER / "cait_fashion_mnist.safetensors"
NEEDS_DATA = pytest.mark.skipif(
    find_files(ROOT / "data") is None, reason="needs Fashion-MNIST: Debian's dataset-fashion-mnist, or data/"
)


@pytest.fixture(scope="module")
def metadata():
    with safetensors.safe_open(WEIGHTS, "pt") as file:
        return {k: json.loads(v) for k, v in file.metadata().items() if k != "format"}


@pytest.fixture(scope="module")
def stored():
    return Profile.load(FOLDER / "cait_fashion_mnist.npz")


def accuracy(data, predict):
    data.setup("validate")
    with torch.no_grad():
        hits = [predict(images).argmax(1) == targets for images, targets in data.val_dataloader()]
    return 100 * torch.cat(hits).float().mean().item()


def test_file_is_small_and_half_precision():
    assert WEIGHTS.stat().st_size <= 2e6
    with safetensors.safe_open(WEIGHTS, "pt") as file:
        assert {file.get_slice(key).get_dtype() for key in file.keys()} == {"F16"}  # noqa: SIM118


def test_plain_timm_loads_it_and_it_knows_the_packaged_sample(metadata):
    name, kwargs = metadata["timm_name"], metadata["timm_kwargs"]
    plain = timm.create_model(name, checkpoint_path=str(WEIGHTS), **kwargs).eval()
    data = FashionMNISTSample(mean=tuple(metadata["mean"]), std=tuple(metadata["std"]), eval_batch_size=500)
    assert accuracy(data, plain) == pytest.approx(metadata["test_acc1"], abs=3)  # 1,000 of the 10,000


@pytest.mark.slow  # of 1,000 of them the test above says the same
@NEEDS_DATA
def test_accuracy_on_the_whole_test_split_is_what_the_file_says(metadata):
    teacher = Backbone("cait_xxs24_224", checkpoint="packaged:cait_fashion_mnist").eval()
    data = FashionMNIST(mean=teacher.mean, std=teacher.std, eval_batch_size=500)
    assert accuracy(data, lambda images: teacher(images).logits) == pytest.approx(
        metadata["test_acc1"], abs=0.02
    )
    assert metadata["test_acc1"] >= 88


@NEEDS_DATA
def test_stored_profile_is_that_of_the_weights(stored):
    teacher = Backbone("cait_xxs24_224", checkpoint="packaged:cait_fashion_mnist")
    data = FashionMNIST()
    data.setup("validate")
    probe = data.probe_set(32)
    profile = profile_model(teacher, probe.normalised(teacher.mean, teacher.std))
    assert probe.probe_id == stored.probe_id
    np.testing.assert_allclose(profile.entropy, stored.entropy, atol=1e-3)
    np.testing.assert_allclose(profile.magnitude, stored.magnitude, rtol=1e-4)


def test_entropy_and_magnitude_are_u_shaped(stored):
    for curve in (stored.entropy, stored.magnitude):
        lowest = int(curve.argmin())
        assert 0 < lowest < len(curve) - 1
    assert signature(stored).u_shaped
