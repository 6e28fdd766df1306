import math
from types import SimpleNamespace

import numpy as np
import numpy_dynamics
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing

from distill_dynamics.dynamics import Profile, profile_model
from distill_dynamics.errors import UserError

WORLD = 2


class Stub:
    """Two layers of different shape, each a function of one image alone, to the last bit."""

    name, layers, channels = "stub", ["a", "b"], [6, 3]

    def parameters(self):
        return iter(())

    def __call__(self, images, layers=(), logits=True):
        maps = [images * 2 - 0.3, images[:, ::2, ::2, ::2].abs() * 5]
        return SimpleNamespace(maps=[maps[i - 1] for i in layers])


def make_images(n):
    return torch.randn(n, 6, 4, 4, generator=torch.Generator().manual_seed(n))


def share(images, rank):
    return images[rank::WORLD]


CASES = {
    "global": (7, {}),
    "layer": (7, {"value_range": "layer"}),
    "scaled": (7, {"value_range": "scaled"}),
    "explicit": (7, {"value_range": (-1, 1)}),
    "streamed": (7, {"batch_size": 2}),
    "floors": (7, {"student_width": 2}),
    "one image": (1, {}),
    "one image, explicit": (1, {"value_range": (-1, 1)}),
}


def bad_cases(rank):
    images = make_images(7)
    spoilt = images.clone()
    spoilt[3, 0, 0, 0] = math.nan  # image 3 is on rank 1
    uneven = images[:5] if rank == 0 else images[5:]
    return {
        "nan": share(spoilt, rank),
        "uneven": uneven,
        "none": images[:0],
        "generator": (x for x in share(images, rank).split(1)) if rank == 1 else share(images, rank),
        "broken": share(images, rank) if rank == 0 else [images[rank::WORLD], "no tensor"],
        "crash": share(images, rank) if rank == 0 else Crash(),
    }


class Crash:
    def __iter__(self):
        raise OSError("disk gone")


def work(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=WORLD)
    for name, (n, options) in CASES.items():
        indices = np.arange(n) + 10
        profile = profile_model(
            Stub(), share(make_images(n), rank), group=dist.group.WORLD, probe_indices=indices, **options
        )
        profile.save(f"{folder}/{name}_{rank}.npz")
    for name, images in bad_cases(rank).items():
        try:
            profile_model(Stub(), images, group=dist.group.WORLD)
            message = "no error"
        except Exception as error:
            message = f"{type(error).__name__}: {error}"
        with open(f"{folder}/{name}_{rank}.txt", "w") as file:
            file.write(message)
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("group")
    torch.multiprocessing.start_processes(work, args=(str(folder),), nprocs=WORLD, start_method="fork")
    return folder


@pytest.mark.parametrize("name", CASES)
def test_every_rank_has_the_profile_of_the_whole_set(folder, name):
    n, options = CASES[name]
    maps = [x.numpy() for x in Stub()(make_images(n), layers=[1, 2]).maps]
    expected = numpy_dynamics.profile(maps, options.get("value_range", "global"))
    for rank in range(WORLD):
        profile = Profile.load(folder / f"{name}_{rank}.npz")
        numpy_dynamics.assert_profile(profile, expected)
        assert profile.probe_indices.tolist() == list(range(10, n + 10))
    assert (folder / f"{name}_0.npz").read_bytes() == (folder / f"{name}_1.npz").read_bytes()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nan", "UserError: stub: layer a (block 1) has NaN or Inf"),
        ("uneven", "UserError: stub: image i of 7 must be on rank i mod 2, but the ranks have [5, 2] images"),
        ("none", "UserError: stub: there are no images"),
        ("generator", "UserError: images can be read only once (generator)"),
        ("broken", "UserError: a batch is a tensor or an (images, targets) pair, not a str"),
    ],
)
def test_an_error_on_one_rank_is_raised_on_all(folder, name, message):
    for rank in range(WORLD):
        assert (folder / f"{name}_{rank}.txt").read_text().startswith(message)


def test_a_crash_on_one_rank_is_told_by_the_other(folder):
    assert (folder / "crash_1.txt").read_text() == "OSError: disk gone"
    assert (folder / "crash_0.txt").read_text() == "RuntimeError: profile_model on rank 1: disk gone"


def test_without_a_group_nothing_is_exchanged(monkeypatch):
    monkeypatch.setattr(dist, "all_gather_object", None)
    assert profile_model(Stub(), make_images(3)).entropy_images.shape == (3, 2)
    with pytest.raises(UserError, match="no images"):
        profile_model(Stub(), make_images(0))
