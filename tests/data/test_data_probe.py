from hashlib import sha256

import numpy as np
import pytest
import torch

from distill_dynamics.data import FashionMNISTSample, ProbeSet, draw_probe
from distill_dynamics.errors import UserError

TARGETS = np.random.default_rng(1).permutation(np.repeat(np.arange(10), 50))


@pytest.mark.parametrize("n", [1, 7, 10, 32, 100, 500])
def test_counts_differ_by_at_most_one(n):
    indices = draw_probe(TARGETS, n, seed=3)
    assert len(set(indices.tolist())) == n
    counts = np.bincount(TARGETS[indices], minlength=10)
    assert counts.max() - counts.min() <= 1


def test_few_images_come_from_distinct_classes_and_not_always_the_same():
    drawn = [tuple(sorted(TARGETS[draw_probe(TARGETS, 4, seed)])) for seed in range(20)]
    assert all(len(set(classes)) == 4 for classes in drawn)
    assert len(set(drawn)) > 10


def test_every_image_can_be_drawn():
    seen = {i for seed in range(400) for i in draw_probe(TARGETS, 20, seed).tolist()}
    assert len(seen) == 500


def test_an_exhausted_class_leaves_its_turns_to_the_others():
    targets = np.array([0] * 50 + [1] * 2 + [2] * 50)
    assert np.bincount(targets[draw_probe(targets, 20)]).tolist() == [9, 2, 9]


def test_a_smaller_draw_is_the_beginning_of_a_larger_one():
    assert np.array_equal(draw_probe(TARGETS, 16, 5), draw_probe(TARGETS, 32, 5)[:16])


def test_labels_need_not_be_contiguous():
    assert sorted(np.array([7, 7, 900, 900])[draw_probe(np.array([7, 7, 900, 900]), 2)]) == [7, 900]


@pytest.mark.parametrize("n", [0, 501])
def test_an_impossible_number_is_one_line(n):
    with pytest.raises(UserError, match=f"{n} probe images cannot be drawn from 500"):
        draw_probe(TARGETS, n)


def test_probe_id_is_a_hash_of_shape_and_pixels():
    pixels = torch.arange(2 * 3 * 4 * 4).to(torch.uint8).reshape(2, 3, 4, 4)
    expected = sha256(b"(2, 3, 4, 4)" + pixels.numpy().tobytes()).hexdigest()[:16]
    assert ProbeSet(np.arange(2), pixels).probe_id == expected
    assert ProbeSet(np.arange(2), pixels.mT.contiguous().mT).probe_id == expected
    assert ProbeSet(np.arange(2), pixels.reshape(2, 3, 2, 8)).probe_id != expected


def test_the_data_modules_probe_set_is_drawn_from_validation_and_leaves_generators_alone():
    data = FashionMNISTSample()
    data.setup("validate")
    torch.manual_seed(0), np.random.seed(0)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002
    probe = data.probe_set(32, seed=1)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert probe.pixels.shape == (32, 1, 28, 28)
    assert probe.pixels.dtype == torch.uint8
    source = data.sources["val"]
    assert np.array_equal(probe.indices, draw_probe(source.targets, 32, 1))
    assert np.array_equal(probe.pixels[:, 0].numpy(), source.pixels[probe.indices])
    assert probe.probe_id == data.probe_set(32, seed=1).probe_id != data.probe_set(32, seed=2).probe_id
    # The same tensors as validation gives.
    images = torch.cat([images for images, _ in data.val_dataloader()])
    assert torch.equal(probe.normalised(data.mean, data.std), images[probe.indices])
