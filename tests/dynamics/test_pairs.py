"""Statistics of a pair of models: linear CKA against its slow form, over ranks, in a Profile and its file."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
import torch.nn.functional as F
from profiles import profile_of

from distill_dynamics import figures
from distill_dynamics.dynamics import Profile
from distill_dynamics.dynamics.profiler import compare_models
from distill_dynamics.errors import UserError
from distill_dynamics.models.backbone import Backbone


class Stub:
    """Layers that are functions of the image: as many as it is given."""

    name = "stub"

    def __init__(self, *functions):
        self.functions, self.layers, self.channels = functions, ["x"] * len(functions), [0] * len(functions)

    def parameters(self):
        return iter(())

    def __call__(self, images, layers=(), logits=True):
        return SimpleNamespace(maps=[self.functions[number - 1](images) for number in layers])


def make_images(n, channels=6):
    """Channels of different sizes, far from zero."""
    scale = torch.logspace(-1, 1, channels).view(-1, 1, 1)
    return torch.randn(n, channels, 4, 4, generator=torch.Generator().manual_seed(n)) * scale + 30


def slow_cka(x, y):
    """Maps [N, C, H, W] and [N, D, H, W] of one grid, by the T × T kernels."""
    x, y = (a.double().permute(0, 2, 3, 1).flatten(0, 2).numpy() for a in (x, y))
    x, y = x - x.mean(0), y - y.mean(0)
    k, other = x @ x.T, y @ y.T
    return (k * other).sum() / np.sqrt((k * k).sum() * (other * other).sum())


def halves(x):
    return F.avg_pool2d(x, 2)


STUDENT = Stub(lambda x: x[:, :4], lambda x: x.square(), lambda x: x[:, ::2, ::2, ::2])
TEACHER = Stub(lambda x: x.abs().sqrt(), lambda x: halves(x) ** 3)


def test_every_pair_is_as_its_slow_form_has_it():
    images, seen_by_teacher = make_images(7), make_images(7) * 1.3
    measured = compare_models(STUDENT, TEACHER, images, seen_by_teacher)["cka"]
    assert measured.shape == (3, 2)
    for row, of_student in enumerate(STUDENT.functions):
        for column, of_teacher in enumerate(TEACHER.functions):
            x, y = of_student(images), of_teacher(seen_by_teacher)
            x, y = (halves(a) if min(x.shape[-1], y.shape[-1]) < a.shape[-1] else a for a in (x, y))
            assert measured[row, column] == pytest.approx(slow_cka(x, y), rel=1e-4)


def test_scale_rotation_and_offset_of_the_channels_do_not_matter():
    rotation, _ = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(0)))
    turned = Stub(lambda x: 0.01 * torch.einsum("dc,nchw->ndhw", rotation, x) - 5)
    (value,) = compare_models(Stub(lambda x: x), turned, make_images(5), make_images(5))["cka"].flat
    assert value == pytest.approx(1, abs=1e-5)


def test_layers_that_share_nothing_have_none():
    """Two channels that are orthogonal over the tokens of each image."""
    wave = torch.tensor([1.0, 1.0, -1.0, -1.0])
    images = torch.stack([wave.view(4, 1).expand(4, 4), wave.view(1, 4).expand(4, 4)])[None]
    (value,) = compare_models(Stub(lambda x: x[:, :1]), Stub(lambda x: x[:, 1:]), images, images)["cka"].flat
    assert value == pytest.approx(0, abs=1e-7)


def test_what_does_not_vary_is_not_known():
    dead = Stub(lambda x: torch.ones_like(x))
    (value,) = compare_models(dead, Stub(lambda x: x), make_images(3), make_images(3))["cka"].flat
    assert np.isnan(value)


def test_the_first_images_alone_are_looked_at():
    images = make_images(7)
    few = compare_models(STUDENT, TEACHER, images, images, most=3)["cka"]
    np.testing.assert_array_equal(few, compare_models(STUDENT, TEACHER, images[:3], images[:3])["cka"])
    with pytest.raises(UserError, match="7 and 3 images"):
        compare_models(STUDENT, TEACHER, images, images[:3])


def test_nothing_is_disturbed():
    """Two real models: flags, gradients' switch and random states are as before."""
    sizes = {"img_size": 28, "patch_size": 14, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 3}
    student = Backbone("deit_tiny_patch16_224", timm_kwargs={**sizes, "drop_rate": 0.5}).train()
    teacher = Backbone("cait_xxs24_224", timm_kwargs={**sizes, "depth": 3})
    images = torch.randn(5, 3, 28, 28)
    before = torch.get_rng_state()
    measured = compare_models(student, teacher, images, images)["cka"]
    assert torch.equal(before, torch.get_rng_state())
    assert student.training
    assert torch.is_grad_enabled()
    maps = student.eval()(images, "all").maps, teacher.eval()(images, "all").maps
    for row, column in np.ndindex(2, 3):
        slow = slow_cka(maps[0][row].detach(), maps[1][column].detach())
        assert measured[row, column] == pytest.approx(slow, rel=1e-4)


def work(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    for n in (7, 1):
        images = make_images(n)[rank::2]
        measured = compare_models(STUDENT, TEACHER, images, images, most=5, group=dist.group.WORLD)["cka"]
        np.save(f"{folder}/{n}_{rank}.npy", measured)
    dist.destroy_process_group()


def test_two_ranks_measure_what_one_does(tmp_path):
    torch.multiprocessing.start_processes(work, (str(tmp_path),), 2, start_method="fork")
    for n in (7, 1):  # of one image the second rank has none
        alone = compare_models(STUDENT, TEACHER, make_images(n), make_images(n), most=5)["cka"]
        shared = [np.load(tmp_path / f"{n}_{rank}.npy") for rank in (0, 1)]
        np.testing.assert_array_equal(*shared)
        np.testing.assert_allclose(shared[0], alone, rtol=1e-4)


def make_profile(layers):
    return profile_of(
        model="m",
        epoch=3,
        layers=[f"blocks.{i}" for i in range(layers)],
        entropy_images=np.ones((2, layers)),
        magnitude_images=np.ones((2, layers)),
        spectrum=[np.ones(4)] * layers,
        spectrum_se=[np.ones(4)] * layers,
        value_range=np.zeros((layers, 2)),
        range_mode="global",
        clipped=np.zeros(layers),
        bins=10,
    )


def with_pairs(layers, of_teacher):
    profile = make_profile(layers=layers)
    values = np.arange(layers * of_teacher, dtype=float).reshape(layers, of_teacher)
    profile.pairs = {"cka": values}
    return profile


@pytest.mark.parametrize(
    ("layers", "of_teacher", "columns"),
    [(3, 3, [0, 1, 2]), (3, 5, [0, 2, 4]), (4, 2, [0, 0, 1, 1]), (1, 4, [0]), (3, 1, [0, 0, 0])],
)
def test_its_curve_is_that_of_layers_at_equal_depth(layers, of_teacher, columns):
    expected = [row * of_teacher + column for row, column in enumerate(columns)]
    assert with_pairs(layers, of_teacher).curve("cka").tolist() == expected


def test_a_file_gives_it_back(tmp_path):
    profile = with_pairs(3, 5)
    profile.save(tmp_path / "p.npz")
    np.testing.assert_array_equal(Profile.load(tmp_path / "p.npz").pairs["cka"], profile.pairs["cka"])
    with np.load(tmp_path / "p.npz") as plain:
        np.testing.assert_array_equal(plain["cka_pairs"], profile.pairs["cka"])


@pytest.mark.parametrize(
    "pairs",
    [{"cka": np.ones(3)}, {"cka": np.ones((2, 5))}, {"entropy": np.ones((3, 5))}, {"a b": np.ones((3, 5))},
     {"cka": np.ones((3, 5)), "other": np.ones((3, 4))}],
)  # fmt: skip
def test_a_table_that_does_not_fit_the_rest_is_refused(pairs):
    whole = make_profile(layers=3)
    fields = {name: getattr(whole, name) for name in whole.__dataclass_fields__}
    with pytest.raises(ValueError, match=r"pairs|shape"):
        Profile(**{**fields, "pairs": pairs})


def test_the_heat_map_shows_every_pair():
    profile, teacher = with_pairs(3, 5), make_profile(layers=5)
    figure = figures.pair_heatmap("cka", {"Epoch 3": profile, "none": make_profile(layers=3)}, teacher)
    (panel, _) = figure.axes  # one Profile has it; the other axes are the colour bar's
    np.testing.assert_array_equal(panel.images[0].get_array(), profile.pairs["cka"])
    assert panel.get_title() == "Epoch 3" or panel.get_title("left") == "Epoch 3"
    with pytest.raises(ValueError, match="none has cka"):
        figures.pair_heatmap("cka", {"none": make_profile(layers=3)})
