import random

import numpy as np
import pytest
import torch
from timm.data.distributed_sampler import OrderedDistributedSampler, RepeatAugSampler
from torch.utils.data import DistributedSampler

from distill_dynamics.data.keyed import (
    NO_IMAGE,
    EvalSampler,
    Key,
    KeyedSampler,
    kept_generators,
    mixed,
    seed_generators,
)


def drawn():
    return random.random(), np.random.rand(), torch.rand(()).item()  # noqa: NPY002


def test_a_key_seeds_all_three_generators_and_every_part_of_it_matters():
    keys = [(7, 0, 0, 0), (8, 0, 0, 0), (7, 1, 0, 0), (7, 0, 1, 0), (7, 0, 0, 1)]
    values = []
    for key in keys:
        with kept_generators():
            seed_generators(*key)
            values.append(drawn())
            seed_generators(*key)
            assert drawn() == values[-1]
    for generator in zip(*values, strict=True):
        assert len(set(generator)) == len(keys)


def test_the_global_generators_are_put_back_also_after_an_error():
    expected = []
    for fail in (False, True):
        random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002
        if not expected:
            expected.append(drawn())
            random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002
        try:
            with kept_generators():
                seed_generators(3)
                drawn()
                if fail:
                    raise KeyError
        except KeyError:
            pass
        assert drawn() == expected[0]


@pytest.mark.parametrize(("size", "world"), [(103, 1), (103, 2), (104, 4)])
def test_the_order_is_torchs_under_a_number_mixed_from_seed_and_epoch(size, world):
    for rank in range(world):
        ours = KeyedSampler(size, seed=5, rank=rank, world=world)
        ours.set_epoch(3)
        theirs = DistributedSampler(range(size), world, rank, seed=mixed(5, 3), drop_last=True)
        assert list(ours) == [Key(3, image, 0) for image in theirs]
        assert len(ours) == len(theirs)


def test_ranks_share_an_epoch_without_overlap():
    images = [key.image for rank in range(4) for key in KeyedSampler(1000, seed=0, rank=rank, world=4)]
    assert sorted(images) == list(range(1000))


@pytest.mark.parametrize("world", [1, 2, 4])
def test_repeats_are_laid_out_as_timm_does_it_and_no_view_comes_twice(world):
    keys = []
    for rank in range(world):
        ours = KeyedSampler(600, seed=5, rank=rank, world=world, repeats=3)
        ours.set_epoch(2)
        theirs = RepeatAugSampler(range(600), world, rank, num_repeats=3)
        theirs.set_epoch(mixed(5, 2))
        assert [key.image for key in ours] == list(theirs)
        assert len(list(ours)) == len(ours)
        keys += list(ours)
    assert len(set(keys)) == len(keys) == 512
    assert {key.repeat for key in keys} == {0, 1, 2}
    counts = np.bincount([key.image for key in keys], minlength=600)
    assert sorted(set(counts)) == [0, 2, 3]  # 512 = 170 whole triples and one pair
    if world == 4:  # copies of one image never meet on one rank
        first = [key.image for key in KeyedSampler(600, seed=5, rank=0, world=4, repeats=3)]
        assert len(set(first)) == len(first)


def test_neighbouring_seeds_share_no_epoch():
    orders = set()
    for seed in range(4):
        sampler = KeyedSampler(50, seed=seed)
        for epoch in range(4):
            sampler.set_epoch(epoch)
            orders.add(tuple(key.image for key in sampler))
    assert len(orders) == 16


@pytest.mark.parametrize(("size", "world"), [(10, 1), (10, 3), (9, 3), (2, 4)])
def test_evaluation_shares_out_each_image_once_and_pads(size, world):
    seen = []
    for rank in range(world):
        ours = list(EvalSampler(size, rank=rank, world=world))
        theirs = OrderedDistributedSampler(range(size), world, rank)
        real = theirs.num_valid_samples
        assert ours[:real] == list(theirs)[:real]
        assert ours[real:] == [NO_IMAGE] * (len(theirs) - real)
        assert len(EvalSampler(size, rank=rank, world=world)) == len(ours)
        seen += ours[:real]
    assert sorted(seen) == list(range(size))


def test_lightning_takes_both_for_distributed_samplers_and_leaves_them_alone():
    assert isinstance(KeyedSampler(10, seed=0), DistributedSampler)
    assert isinstance(EvalSampler(10), DistributedSampler)
