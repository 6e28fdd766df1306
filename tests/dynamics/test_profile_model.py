import math
import random
import subprocess
import sys
import weakref
from types import SimpleNamespace

import numpy as np
import numpy_dynamics
import pytest
import timm
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from distill_dynamics.dynamics import profile_model, profile_ranges
from distill_dynamics.dynamics.profiler import passes
from distill_dynamics.errors import UserError
from distill_dynamics.models.backbone import Backbone

TINY_VIT = (
    "vit_tiny_patch16_224",
    {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 4, "num_heads": 3},
)
TINY_CAIT = (
    "cait_s24_224",
    {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "num_classes": 5},
)


def random_images(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def whole_maps(backbone, images):
    """All layers of all images at once, from timm."""
    with torch.no_grad():
        maps = backbone.model.eval().forward_intermediates(images, norm=False, intermediates_only=True)
    return [x.numpy() for x in maps]


class StubBackbone(nn.Module):
    """Two layers of different shape; minds its mode, uses up random numbers, remembers its calls."""

    name = "stub"

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(2, 5, 1)
        self.norm = nn.BatchNorm2d(5)
        self.dropout = nn.Dropout()
        self.second = nn.Conv2d(5, 8, 2, stride=2)
        self.layers, self.channels = ["first", "second"], [5, 8]
        self.batches = []
        self.alive_at_entry = []
        self.produced = []

    def forward(self, images, layers=(), logits=True):
        assert not logits
        self.alive_at_entry.append(sum(ref() is not None for ref in self.produced))
        self.batches.append(len(images))
        random.random(), np.random.rand(), torch.rand(1)  # noqa: NPY002
        a = self.norm(self.dropout(self.first(images)))
        b = self.second(a)
        maps = [[a, b][i - 1] for i in layers]
        self.produced += [weakref.ref(x) for x in maps]
        return SimpleNamespace(logits=None, maps=maps)

    def whole_maps(self, images):
        with torch.no_grad():
            a = nn.functional.batch_norm(
                self.first(images),
                self.norm.running_mean,
                self.norm.running_var,
                self.norm.weight,
                self.norm.bias,
            )
            return [a.numpy(), self.second(a).numpy()]


@pytest.fixture
def stub():
    torch.manual_seed(0)
    return StubBackbone()


@pytest.mark.parametrize("value_range", ["global", "layer", "scaled", (-1.0, 0.75)])
@pytest.mark.parametrize("batch_size", [32, 3, 1])
@pytest.mark.parametrize(
    ("name", "kwargs"),
    [TINY_VIT, TINY_CAIT, ("resnet10t", {}), ("convnext_atto", {"depths": (1, 1, 1, 1)})],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_streaming_equals_numpy_on_the_whole_stack(name, kwargs, batch_size, value_range):
    torch.manual_seed(0)
    backbone = Backbone(name, timm_kwargs=kwargs)
    images = random_images(7, 3, 32, 32)
    maps = whole_maps(backbone, images)
    profile = profile_model(
        backbone, images, batch_size=batch_size, value_range=value_range, epoch=2, probe_id="x"
    )

    expected = numpy_dynamics.profile(maps, value_range)
    if value_range != (-1.0, 0.75):  # measured on activations that depend on the batch size to rounding
        np.testing.assert_allclose(profile.value_range, expected["value_range"], rtol=1e-4)
        expected["value_range"] = profile.value_range
    # Rounding of the forward pass itself moves a few values over bin edges: 1e-4 bits is for equal maps.
    np.testing.assert_allclose(profile.entropy_images, expected["entropy_images"], atol=2e-3)
    expected["entropy_images"] = profile.entropy_images
    numpy_dynamics.assert_profile(profile, expected)
    assert [s.shape for s in profile.spectrum] == [(x.shape[1],) for x in maps]
    assert profile.layers == [info["module"] for info in timm.create_model(name, **kwargs).feature_info]
    assert (profile.model, profile.epoch, profile.probe_id, profile.bins) == (name, 2, "x", 100)
    assert profile.range_mode == (value_range if isinstance(value_range, str) else "explicit")


@pytest.mark.parametrize("value_range", ["global", "layer", "scaled", (-0.5, 0.5)])
@pytest.mark.parametrize("batch_size", [32, 4])
def test_exact_agreement_on_equal_maps(stub, batch_size, value_range):
    images = random_images(9, 2, 6, 6)
    profile = profile_model(stub, images, value_range=value_range, batch_size=batch_size, bins=20)
    maps = [stub.whole_maps(part) for part in images.split(batch_size)]
    stacked = [np.concatenate(layer) for layer in zip(*maps, strict=True)]
    numpy_dynamics.assert_profile(profile, numpy_dynamics.profile(stacked, value_range, bins=20))
    assert (profile.clipped > 0).all() == isinstance(value_range, tuple)


def test_one_image_has_no_standard_error(stub):
    profile = profile_model(stub, random_images(1, 2, 6, 6))
    assert np.isnan(profile.entropy_se).all()
    assert all(np.isnan(se).all() for se in profile.spectrum_se)


@pytest.mark.parametrize(
    ("value_range", "batch_size", "batches"),
    [
        ("global", 32, [9]),
        ("global", 9, [9]),
        ("global", 4, [4, 4, 1, 4, 4, 1]),
        ("layer", 4, [4, 4, 1, 4, 4, 1]),
        ((0, 1), 4, [4, 4, 1]),
    ],
)
def test_a_second_pass_only_where_it_is_needed(stub, value_range, batch_size, batches):
    profile_model(stub, random_images(9, 2, 6, 6), value_range=value_range, batch_size=batch_size)
    assert stub.batches == batches


@pytest.mark.parametrize("batch_size", [32, 4])
def test_several_ranges_cost_the_passes_of_one(stub, batch_size):
    images = random_images(9, 2, 6, 6)
    ranges = [(-0.5, 0.5), "layer", (0, 1), "global", "scaled"]
    profiles = profile_ranges(stub, images, value_ranges=ranges, batch_size=batch_size)
    assert stub.batches == ([9] if batch_size == 32 else [4, 4, 1, 4, 4, 1])
    maps = [stub.whole_maps(part) for part in images.split(batch_size)]
    stacked = [np.concatenate(layer) for layer in zip(*maps, strict=True)]
    for profile, value_range in zip(profiles, ranges, strict=True):
        numpy_dynamics.assert_profile(profile, numpy_dynamics.profile(stacked, value_range))
    assert [profile.range_mode for profile in profiles] == [
        "explicit",
        "layer",
        "explicit",
        "global",
        "scaled",
    ]
    stub.batches.clear()
    profile_ranges(stub, images, value_ranges=[(-0.5, 0.5), (0, 1)], batch_size=4)
    assert stub.batches == [4, 4, 1]


class Rescaled(StubBackbone):
    """The same stub, its second layer a thousand times as large, a third one that is 0 everywhere."""

    def __init__(self):
        super().__init__()
        self.layers, self.channels = ["first", "second", "dead"], [5, 8, 4]

    def forward(self, images, layers=(), logits=True):
        a, b = super().forward(images, [1, 2], logits).maps
        maps = [a, 1000 * b, torch.zeros(len(images), 4, 2, 2)]
        return SimpleNamespace(logits=None, maps=[maps[i - 1] for i in layers])


def test_scaled_entropy_does_not_know_a_layers_scale(stub):
    torch.manual_seed(0)
    large, images = Rescaled(), random_images(9, 2, 6, 6)
    plain, scaled = (profile_model(model, images, value_range="scaled") for model in (stub, large))
    np.testing.assert_allclose(scaled.entropy_images[:, :2], plain.entropy_images, atol=1e-3)
    assert (scaled.entropy_images[:, 2] == 0).all()
    with_scale = profile_model(large, images).entropy_images
    assert np.abs(with_scale[:, :2] - profile_model(stub, images).entropy_images).max() > 1


def test_no_range_is_refused(stub):
    with pytest.raises(UserError, match="at least one"):
        profile_ranges(stub, IMAGES, value_ranges=[])


@pytest.mark.parametrize(
    ("value_range", "batch_size", "parts"),
    [
        ("global", 32, [4, 4, 1]),
        ("layer", 6, [4, 2, 3, 4, 2, 3]),
        ((-0.5, 0.5), 32, [4, 4, 1]),
    ],
)
def test_large_batches_go_through_a_cpu_in_parts(stub, monkeypatch, value_range, batch_size, parts):
    images = random_images(9, 2, 6, 6)
    monkeypatch.setattr(passes, "CPU_VALUES", images[:4].numel())
    profile = profile_model(stub, images, value_range=value_range, batch_size=batch_size)
    assert stub.batches == parts
    expected = numpy_dynamics.profile(stub.whole_maps(images), value_range)
    np.testing.assert_allclose(profile.value_range, expected["value_range"], rtol=1e-5)
    np.testing.assert_allclose(profile.entropy_images, expected["entropy_images"], atol=2e-3)
    np.testing.assert_allclose(profile.magnitude_images, expected["magnitude_images"], rtol=1e-5)


def test_never_more_than_one_batch_of_activations(stub):
    profile_model(stub, random_images(40, 2, 6, 6), batch_size=2)
    assert stub.alive_at_entry == [0] * 40


PEAK_MEMORY = """
import resource, sys, torch
from distill_dynamics.models.backbone import Backbone
from distill_dynamics.dynamics import profile_model

class Batches:
    def __iter__(self):
        for seed in range(int(sys.argv[1])):
            yield torch.randn(32, 3, 64, 64, generator=torch.Generator().manual_seed(seed))

torch.set_num_threads(1)
profile_model(Backbone("resnet10t"), Batches())
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


@pytest.mark.slow
def test_peak_memory_does_not_grow_with_the_images():
    few, many = (
        float(subprocess.run([sys.executable, "-c", PEAK_MEMORY, n], capture_output=True, check=True).stdout)
        for n in ("2", "20")
    )
    assert many - few < 40  # MiB; the activations of one batch are 12


HOLES = """
import resource, sys, torch
from distill_dynamics.dynamics import profile_model

class Deep(torch.nn.Module):
    name, layers, channels = "deep", [f"blocks.{i}" for i in range(24)], [384] * 24

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, images, layers, logits):
        torch.empty(8, 8, 196, 196).fill_(0)  # passing, as attention maps are
        small = torch.nn.functional.interpolate(images[:, :1], (4, 4)).expand(-1, 384, 4, 4)
        return type("Features", (), {"maps": [small * (1 + i) for i in layers]})

class Batches:
    def __iter__(self):
        for seed in range(int(sys.argv[1])):
            yield torch.randn(32, 3, 224, 224, generator=torch.Generator().manual_seed(seed))

torch.set_num_threads(1)
profile_model(Deep(), Batches())
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


@pytest.mark.slow
def test_what_is_kept_of_each_image_leaves_no_holes_between_the_batches():
    few, many = (
        float(subprocess.run([sys.executable, "-c", HOLES, n], capture_output=True, check=True).stdout)
        for n in ("10", "60")
    )
    assert many < 1.1 * few  # 1.5 where rows of images are joined batch by batch


def test_layers_are_chosen_by_number_and_come_in_depth_order(stub):
    images = random_images(3, 2, 6, 6)
    both = profile_model(stub, images, value_range="layer")
    assert profile_model(stub, images, layers=[-1, 1]).layers == ["first", "second"]
    last = profile_model(stub, images, layers=[-1])
    assert last.layers == ["second"]
    assert last.blocks.tolist() == [2]
    assert last.entropy[0] == both.entropy[1]
    with pytest.raises(UserError, match="layer 3 does not exist"):
        profile_model(stub, images, layers=[3])
    with pytest.raises(UserError, match="no layers"):
        profile_model(stub, images, layers=[])


IMAGES = random_images(9, 2, 6, 6)
TARGETS = torch.arange(9)


@pytest.mark.parametrize(
    "source",
    [
        lambda: IMAGES.split(4),
        lambda: DataLoader(TensorDataset(IMAGES, TARGETS), batch_size=4),
        lambda: [(IMAGES[:4], TARGETS[:4]), [IMAGES[4:8], TARGETS[4:8]], (IMAGES[8:],)],
        lambda: [
            (torch.cat([IMAGES[:5], IMAGES[:2]]), torch.tensor([0, 1, 2, 3, 4, -100, -100])),
            (IMAGES[:2], torch.tensor([-100, -100])),
            (torch.cat([IMAGES[:1], IMAGES[5:]]), torch.tensor([-100, 1, 1, 1, 1])),
        ],
    ],
    ids=["tensors", "DataLoader", "pairs", "padded"],
)
def test_sources_of_images(stub, source):
    expected = profile_model(stub, IMAGES)
    profile = profile_model(stub, source())
    np.testing.assert_allclose(profile.entropy_images, expected.entropy_images, atol=1e-5)
    np.testing.assert_allclose(profile.magnitude_images, expected.magnitude_images, rtol=1e-6)


def test_a_generator_is_read_once_at_most(stub):
    with pytest.raises(UserError, match=r"read only once \(generator\)"):
        profile_model(stub, (part for part in IMAGES.split(4)))
    assert stub.batches == [4]
    assert profile_model(stub, iter([IMAGES])).entropy_images.shape == (9, 2)
    assert profile_model(stub, (part for part in IMAGES.split(4)), value_range=(0, 1)).bins == 100


def test_a_shuffling_loader_is_found_out(stub):
    loader = DataLoader(TensorDataset(IMAGES, TARGETS), batch_size=4, shuffle=True)
    with pytest.raises(UserError, match="differ when read a second time"):
        profile_model(stub, loader)


def test_a_source_that_shrinks_is_found_out(stub):
    class Shrinking:
        parts = (*IMAGES.split(2), None)

        def __iter__(self):
            self.parts = self.parts[:-1]
            return iter(self.parts)

    with pytest.raises(UserError, match="differ when read a second time"):
        profile_model(stub, Shrinking())


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 6, 6), r"\[B, C_in, H_in, W_in\], not torch.float32 \[2, 6, 6\]"),
        (torch.zeros(2, 2, 6, 6, dtype=torch.uint8), "normalised floating-point"),
        ([{"image": IMAGES}], "not a dict"),
        ([], "no images"),
        (IMAGES[:0], "no images"),
        ([(IMAGES, torch.full((9,), -100))], "no images"),
    ],
)
def test_images_that_are_none(stub, images, message):
    with pytest.raises(UserError, match=message):
        profile_model(stub, images)


@pytest.mark.parametrize(
    "value_range", ["Global", 3, (1, 0), (1, 1), (0, math.inf), (0, 1, 2), ("a", "b"), None, np.array([1, 0])]
)
def test_ranges_that_are_none(stub, value_range):
    with pytest.raises(UserError, match='value_range must be "global", "layer", "scaled" or two numbers'):
        profile_model(stub, IMAGES, value_range=value_range)
    assert stub.batches == []


def test_probe_indices_belong_to_images(stub):
    assert profile_model(stub, IMAGES, probe_indices=range(9)).probe_indices.tolist() == list(range(9))
    with pytest.raises(UserError, match="probe_indices"):
        profile_model(stub, IMAGES, probe_indices=[1, 2])


def test_bins_must_be_positive(stub):
    with pytest.raises(UserError, match="bins"):
        profile_model(stub, IMAGES, bins=0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("value_range", ["global", (0, 1)])
def test_what_is_not_finite_is_an_error_that_names_the_layer(bad, value_range):
    name, kwargs = TINY_VIT
    backbone = Backbone(name, timm_kwargs=kwargs)
    with torch.no_grad():
        backbone.model.blocks[2].mlp.fc2.bias[7] = bad
    with pytest.raises(UserError, match=rf"{name}: layer blocks\.2 \(block 3\) has NaN or Inf"):
        profile_model(backbone, random_images(5, 3, 32, 32), batch_size=2, value_range=value_range)


def state_of_everything(backbone):
    return {
        "modes": [module.training for module in backbone.modules()],
        "needs grad": [weight.requires_grad for weight in backbone.parameters()],
        "grads": [weight.grad for weight in backbone.parameters()],
        "weights": [x.clone() for x in backbone.state_dict().values()],
        "python": random.getstate(),
        "numpy": [part.tolist() if i == 1 else part for i, part in enumerate(np.random.get_state())],  # noqa: NPY002
        "torch": torch.get_rng_state(),
        "grad mode": torch.is_grad_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
    }


def assert_as_before(before, after):
    for key, value in before.items():
        if key in ("weights", "grads", "torch"):
            assert all(torch.equal(a, b) for a, b in zip(value, after[key], strict=True) if a is not None), (
                key
            )
            assert [a is None for a in value] == [a is None for a in after[key]], key
        else:
            assert value == after[key], key


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_behind(stub, fails):
    stub.train()
    stub.norm.eval()
    stub.second.weight.requires_grad_(False)
    stub.first.weight.grad = torch.ones_like(stub.first.weight)
    images = IMAGES.clone()
    if fails:
        images[-1] = math.nan
    loader = DataLoader(TensorDataset(images), batch_size=4)  # itself draws a random number when read
    with torch.autocast("cpu", torch.bfloat16):
        before = state_of_everything(stub)
        if fails:
            with pytest.raises(UserError, match="NaN"):
                profile_model(stub, loader)
        else:
            profile = profile_model(stub, loader)
        assert_as_before(before, state_of_everything(stub))
    if not fails:  # eval mode, full precision and no gradient, whatever is set outside
        expected = profile_model(stub.eval(), images, batch_size=4)
        assert np.array_equal(profile.entropy_images, expected.entropy_images)
        assert np.array_equal(profile.magnitude_images, expected.magnitude_images)


def test_a_half_precision_model_is_measured_as_it_is(stub):
    stub.bfloat16()
    maps = []
    stub.second.register_forward_hook(lambda module, args, output: maps.append(output))
    profile = profile_model(stub, IMAGES, layers=[2])
    assert maps[0].dtype == torch.bfloat16
    numpy_dynamics.assert_profile(profile, numpy_dynamics.profile([maps[0].float().numpy()]))


def test_a_compiled_model_is_run_uncompiled(stub):
    graphs = []
    stub.compile(backend=lambda graph, inputs: graphs.append(graph) or graph.forward)
    profile_model(stub, IMAGES)
    assert graphs == []


@pytest.mark.parametrize(
    ("batch_size", "progress", "shown"), [(4, True, True), (32, True, False), (4, False, False)]
)
def test_progress(stub, capsys, batch_size, progress, shown):
    profile_model(stub, IMAGES, batch_size=batch_size, progress=progress)
    assert ("stub: entropy" in capsys.readouterr().err) == shown
