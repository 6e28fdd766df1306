import inspect
import sys
from pathlib import Path

import pytest
import timm
import timm.optim
import torch
from torch import nn

from distill_dynamics.errors import UserError
from distill_dynamics.models.backbone import Backbone

# 28 x 42 pixels in patches of 14: a grid of 2 x 3, so that a transposed map is a wrong map.
TOKENS = {
    "img_size": [28, 42],
    "patch_size": 14,
    "embed_dim": 16,
    "depth": 3,
    "num_heads": 2,
    "num_classes": 5,
}
PIXELS = {**TOKENS, "img_size": [32, 48], "patch_size": 16}
DEIT = "deit_tiny_patch16_224"

# timm's name, its keywords, how its blocks lay out their output: the number of prefix tokens, or the axes.
FAMILIES = [
    ("cait_xxs24_224", TOKENS, 0),
    (DEIT, TOKENS, 1),
    ("deit_tiny_distilled_patch16_224", TOKENS, 2),
    ("vit_base_patch16_224.mae", TOKENS, 1),
    ("vit_small_patch14_reg4_dinov2", TOKENS, 5),
    ("beit_base_patch16_224", TOKENS, 1),
    ("xcit_nano_12_p16_224", PIXELS, 0),
    ("mixer_s32_224", {"img_size": [64, 96], "num_classes": 5}, 0),
    (
        "swin_tiny_patch4_window7_224",
        {"img_size": [32, 48], "window_size": 4, "embed_dim": 8, "depths": [1, 2, 1], "num_heads": [1, 2, 4]},
        "NHWC",
    ),
    ("convnext_atto", {"depths": [1, 1, 2, 1], "dims": [8, 16, 24, 32]}, "NCHW"),
    ("resnet18", {"layers": [1, 1, 1, 1], "channels": [8, 16, 24, 32]}, "NCHW"),
    ("test_efficientnet", {}, "NCHW"),
]


def shaken(model: nn.Module) -> nn.Module:
    """No zero or constant initialisation left that would make two blocks alike; in eval mode."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def images_for(backbone: Backbone) -> torch.Tensor:
    channels, height, width = backbone.input_size
    if height > 64:  # a model of any input size
        height, width = 64, 96
    return torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(0))


def deit(**changes) -> Backbone:
    return shaken(Backbone(DEIT, timm_kwargs={**TOKENS, **changes}))


def error_of(*args, **kwargs) -> str:
    with pytest.raises(UserError) as caught:
        Backbone(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# --- one call: logits and maps


@pytest.mark.parametrize(("name", "timm_kwargs", "layout"), FAMILIES, ids=[name for name, _, _ in FAMILIES])
def test_maps_and_logits_are_those_of_the_plain_timm_model(name, timm_kwargs, layout):
    backbone = shaken(Backbone(name, timm_kwargs=timm_kwargs))
    plain = timm.create_model(name, **timm_kwargs).eval()
    plain.load_state_dict(backbone.model.state_dict())
    names = [layer["module"] for layer in plain.feature_info]
    outputs = {}
    for layer in names:
        plain.get_submodule(layer).register_forward_hook(
            lambda module, inputs, output, layer=layer: outputs.setdefault(layer, output.clone())
        )
    images = images_for(backbone)

    with torch.no_grad():
        expected = plain(images)
        logits_alone = backbone(images).logits
        logits, maps = backbone(images, layers="all")
        no_logits, early = backbone(images, layers="all", logits=False)

    assert backbone.layers == names
    assert torch.equal(logits, expected)
    assert torch.equal(logits_alone, expected)
    assert no_logits is None
    assert backbone.channels == [a.shape[1] for a in maps]
    for layer, a, b in zip(names, maps, early, strict=True):
        output = outputs[layer]
        if layout == "NHWC":
            output = output.permute(0, 3, 1, 2)
        elif layout != "NCHW":
            patches = output[:, layout:]
            assert patches.shape[1] == 2 * 3
            output = torch.stack([patches[:, :3], patches[:, 3:]], dim=1).permute(0, 3, 1, 2)
        assert torch.equal(a, output)
        assert torch.equal(b, output)


def test_layers_come_in_the_order_asked_for_with_repeats():
    backbone = deit()
    images = images_for(backbone)
    first, second, third = backbone(images, layers="all").maps
    for layers, expected in [
        ([3, 1, 1], [third, first, first]),
        ((-1, 2), [third, second]),
        (range(1, 4), [first, second, third]),
    ]:
        for logits in (True, False):
            maps = backbone(images, layers=layers, logits=logits).maps
            assert len(maps) == len(expected)
            assert all(torch.equal(a, b) for a, b in zip(maps, expected, strict=True))


@pytest.mark.parametrize(
    ("layers", "logits", "runs"),
    [
        ([1], False, ["blocks.0"]),
        ([2, 1], False, ["blocks.0", "blocks.1"]),
        ([-3], False, ["blocks.0"]),
        ((), False, []),
        ((), True, ["blocks.0", "blocks.1", "blocks.2", "norm", "head"]),
        ([1, 3], True, ["blocks.0", "blocks.1", "blocks.2", "norm", "head"]),
    ],
)
def test_runs_no_more_than_asked(layers, logits, runs):
    backbone, ran = deit(), []
    for name in ("blocks.0", "blocks.1", "blocks.2", "norm", "head"):
        backbone.model.get_submodule(name).register_forward_hook(lambda *_, name=name: ran.append(name))
    backbone(images_for(backbone), layers=layers, logits=logits)
    assert ran == runs


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "swin_tiny_patch4_window7_224"])
def test_a_hierarchical_model_stops_after_the_deepest_stage_asked_for(name):
    timm_kwargs = next(kwargs for family, kwargs, _ in FAMILIES if family == name)
    backbone, ran = Backbone(name, timm_kwargs=timm_kwargs).eval(), []
    for layer in backbone.layers:
        backbone.model.get_submodule(layer).register_forward_hook(lambda *_, layer=layer: ran.append(layer))
    backbone(images_for(backbone), layers=[2], logits=False)
    assert ran == backbone.layers[:2]


def test_logits_alone_are_the_plain_forward(monkeypatch):
    backbone = deit()
    monkeypatch.setattr(backbone.model, "forward_intermediates", None)
    assert backbone(images_for(backbone)).logits.shape == (2, 5)
    assert backbone(images_for(backbone)).maps == []


def test_gradients_reach_the_weights_through_maps_and_logits():
    backbone = deit()
    logits, (a,) = backbone(images_for(backbone), layers=[1])
    (logits.square().mean() + a.square().mean()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in backbone.parameters())


def test_without_classes_there_are_no_logits():
    backbone = deit(num_classes=0)
    assert backbone.num_classes == 0
    logits, maps = backbone(images_for(backbone), layers=[1])
    assert logits is None
    assert maps[0].shape == (2, 16, 2, 3)
    assert backbone(images_for(backbone)) == (None, [])


@pytest.mark.parametrize("layers", [[4], [0], [-4], [1.5], "last", 2])
def test_a_layer_that_does_not_exist(layers):
    backbone = deit()
    with pytest.raises(UserError, match="layer") as caught:
        backbone(images_for(backbone), layers=layers)
    assert "\n" not in str(caught.value)


@timm.models.register_model
def no_maps_here(pretrained=False, num_classes=7, **kwargs):
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, num_classes))
    model.num_classes = num_classes
    return model


def test_a_model_without_intermediates_gives_logits_and_one_clear_line():
    backbone = Backbone("no_maps_here")
    assert (backbone.layers, backbone.channels) == ([], [])
    assert backbone(torch.zeros(2, 3, 8, 8)).logits.shape == (2, 7)
    for layers in ([1], "all"):
        with pytest.raises(UserError, match="no_maps_here: timm gives no intermediate outputs") as caught:
            backbone(torch.zeros(2, 3, 8, 8), layers=layers)
        assert "\n" not in str(caught.value)


# --- what the model is


def test_input_size_and_normalisation_are_timms():
    backbone = Backbone("test_vit")
    assert backbone.input_size == (3, 160, 160)
    assert (backbone.mean, backbone.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert Backbone("test_vit", timm_kwargs={"img_size": 32}).input_size == (3, 32, 32)
    assert not backbone.has_weights


def test_one_channel_takes_the_average_normalisation():
    backbone = deit(in_chans=1)
    assert backbone.input_size == (1, 28, 42)
    assert backbone.mean == pytest.approx([(0.485 + 0.456 + 0.406) / 3])
    assert backbone.std == pytest.approx([(0.229 + 0.224 + 0.225) / 3])


def test_set_normalisation_broadcasts_one_number():
    backbone = deit()
    backbone.set_normalisation([0.25], [0.5])
    assert (backbone.mean, backbone.std) == ((0.25,) * 3, (0.5,) * 3)


def test_check_input():
    backbone = deit(img_size=28)
    backbone.check_input(3, 28)
    with pytest.raises(UserError, match=r"takes 3 channels and the images have 4.*in_chans: 4"):
        backbone.check_input(4, 28)
    with pytest.raises(UserError, match=r"takes 28 x 28 images and the data give 32 x 32"):
        backbone.check_input(3, 32)
    with pytest.raises(UserError, match="takes 224 x 224 images"):
        Backbone("mixer_s32_224").check_input(3, 32)
    deit(img_size=28, dynamic_img_size=True).check_input(3, 56)
    Backbone("test_resnet").check_input(3, 96)


@pytest.mark.parametrize(("name", "timm_kwargs", "layout"), FAMILIES, ids=[name for name, _, _ in FAMILIES])
def test_no_weight_decay_is_what_timm_exempts(name, timm_kwargs, layout):
    backbone = Backbone(name, timm_kwargs=timm_kwargs)
    patterns = backbone.model.no_weight_decay() if hasattr(backbone.model, "no_weight_decay") else ()
    exempt, *_ = timm.optim.param_groups_weight_decay(
        backbone.model, 0.1, weight_decay_exclude_1d=False, no_weight_decay_list=patterns
    )
    exempt = {id(p) for p in exempt["params"]} if exempt["weight_decay"] == 0 else set()
    ours = backbone.no_weight_decay()
    matrices = {key: p for key, p in backbone.named_parameters() if p.ndim > 1 and not key.endswith(".bias")}
    assert ours <= dict(backbone.named_parameters()).keys()
    assert {key for key, p in matrices.items() if id(p) in exempt} == ours & matrices.keys()


def test_no_weight_decay_by_hand():
    assert deit().no_weight_decay() == {"model.cls_token", "model.pos_embed"}
    xcit = Backbone("xcit_nano_12_p16_224", timm_kwargs=PIXELS)
    assert "model.pos_embed.token_projection.weight" in xcit.no_weight_decay()
    assert Backbone("test_resnet").no_weight_decay() == set()


def test_only_this_file_calls_timms_forward_intermediates():
    package = Path(inspect.getfile(sys.modules["distill_dynamics"])).parent
    call = "model.forward_intermediates("
    assert [path.name for path in package.rglob("*.py") if call in path.read_text()] == ["backbone.py"]
