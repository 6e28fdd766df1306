import argparse
import inspect
import json
import os
import pickle
import sys
import time
from pathlib import Path

import huggingface_hub
import pytest
import safetensors.torch
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
    with pytest.raises(UserError, match=r"takes 3 channels and the images have 1.*in_chans: 1"):
        backbone.check_input(1, 28)
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


# --- weights from files


def save(content, path: Path) -> Path:
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(content, path)
    else:
        torch.save(content, path)
    return path


WRAPPERS = {
    "plain.safetensors": lambda state, other: state,
    "plain.pth": lambda state, other: state,
    "model.pth": lambda state, other: {
        "model": state,
        "model_ema": other,
        "epoch": 3,
        "args": argparse.Namespace(lr=0.1, model="x", drop=None),
    },
    "state_dict.pth": lambda state, other: {"state_dict": state, "state_dict_ema": other, "arch": "x"},
    "ddp.pth": lambda state, other: {"model": {f"module.{key}": value for key, value in state.items()}},
    "compiled.pth": lambda state, other: {f"_orig_mod.module.{key}": value for key, value in state.items()},
    "lightning.ckpt": lambda state, other: {
        "distill_dynamics": {
            "student": {"timm_name": DEIT, "timm_kwargs": TOKENS, "mean": [0.1, 0.2, 0.3], "std": [1, 2, 3]},
            "teacher_accuracy": None,
        },
        "state_dict": {
            **{f"student.model.{key}": value for key, value in state.items()},
            **{f"terms.projector.model.{key}": value for key, value in other.items()},
        },
        "epoch": 3,
    },
}


@pytest.mark.parametrize("kind", WRAPPERS)
def test_weights_are_read_from(kind, tmp_path):
    source = shaken(timm.create_model(DEIT, **TOKENS))
    other = timm.create_model(DEIT, **TOKENS).state_dict()
    path = save(WRAPPERS[kind](source.state_dict(), other), tmp_path / kind)
    # Lightning's checkpoint of ours needs no keywords.
    backbone = Backbone(DEIT, checkpoint=path, timm_kwargs=None if kind == "lightning.ckpt" else TOKENS)
    assert same_weights(backbone.model, source)
    assert backbone.has_weights
    assert backbone.mean == ((0.1, 0.2, 0.3) if kind == "lightning.ckpt" else (0.485, 0.456, 0.406))
    assert backbone.std == ((1, 2, 3) if kind == "lightning.ckpt" else (0.229, 0.224, 0.225))


class Evil:
    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


def test_a_malicious_pickle_does_not_run(tmp_path):
    target, path = tmp_path / "ran", tmp_path / "evil.pth"
    torch.save({"model": deit().model.state_dict(), "args": Evil(target)}, path)
    message = error_of(DEIT, checkpoint=path, timm_kwargs=TOKENS)
    assert str(path) in message
    assert ".system" in message
    path.write_bytes(pickle.dumps(Evil(target), protocol=2))
    assert str(path) in error_of(DEIT, checkpoint=path, timm_kwargs=TOKENS)
    assert not target.exists()
    pickle.loads(path.read_bytes())  # the trap is a real one
    assert target.exists()


@pytest.mark.parametrize("kind", ["safetensors", "pth"])
def test_a_damaged_file_is_one_line(kind, tmp_path):
    whole = save(deit().model.state_dict(), tmp_path / f"whole.{kind}").read_bytes()
    path = tmp_path / f"damaged.{kind}"
    for content in (b"", b"hello", whole[:4], whole[:40], whole[: len(whole) // 2], whole[:-4]):
        path.write_bytes(content)
        assert str(path) in error_of(DEIT, checkpoint=path, timm_kwargs=TOKENS)


def test_a_damaged_old_style_pickle_is_one_line(tmp_path):
    path = tmp_path / "old.pth"
    torch.save(deit().model.state_dict(), path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    for length in range(0, 200, 7):
        path.write_bytes(whole[:length])
        assert str(path) in error_of(DEIT, checkpoint=path, timm_kwargs=TOKENS)


def test_a_file_without_weights_is_one_line(tmp_path):
    for content in ({"epoch": 3}, {}, [1, 2], torch.zeros(2), {"model": {"optimizer": {"lr": 1.0}}}):
        path = save(content, tmp_path / "other.pth")
        message = error_of(DEIT, checkpoint=path, timm_kwargs=TOKENS)
        assert str(path) in message
        assert "state_dict" in message


def test_a_missing_file_is_one_line(tmp_path):
    assert "no such file" in error_of(DEIT, checkpoint=tmp_path / "none.safetensors")
    assert "a folder without config.json" in error_of(DEIT, checkpoint=tmp_path)


def test_a_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    source = deit()
    source.export(tmp_path / "x.safetensors")
    assert same_weights(Backbone(DEIT, checkpoint="~/x.safetensors"), source)


def test_pretrained_and_checkpoint_exclude_each_other():
    assert "not both" in error_of(DEIT, pretrained=True, checkpoint="x.safetensors")


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_a_checkpoint_that_does_not_fit(kind, tmp_path):
    state = timm.create_model(DEIT, **TOKENS).state_dict()
    path = tmp_path / f"x.{kind}"

    save({**state, "head.bias": torch.zeros(9)}, path)
    message = error_of(DEIT, checkpoint=path, timm_kwargs=TOKENS)
    assert str(path) in message
    assert "head.bias is [9] in the file and [5] in the model" in message

    save({key: value for key, value in state.items() if key != "norm.bias"}, path)
    assert message.split(":")[0] == "checkpoint"
    assert "norm.bias is missing" in error_of(DEIT, checkpoint=path, timm_kwargs=TOKENS)

    save({**state, "extra": torch.zeros(1)}, path)
    assert "extra is not in the model" in error_of(DEIT, checkpoint=path, timm_kwargs=TOKENS)

    save(state, path)
    others = {key: value for key, value in TOKENS.items() if key != "num_classes"}
    message = error_of(DEIT, checkpoint=path, timm_kwargs=others)
    assert "head.weight is [5, 16] in the file and [1000, 16] in the model (and 1 more)" in message


def test_packaged_weights(tmp_path, monkeypatch):
    monkeypatch.setattr("distill_dynamics.models.weights.resources.files", lambda package: tmp_path)
    assert "none" in error_of(DEIT, checkpoint="packaged:small")
    source = deit()
    source.export(tmp_path / "weights" / "small.safetensors")
    assert same_weights(Backbone(DEIT, checkpoint="packaged:small"), source)
    message = error_of(DEIT, checkpoint="packaged:smal")
    assert "'smal'" in message
    assert "small" in message.split("there are:")[1]


# --- export


def test_an_export_is_loaded_by_name_and_checkpoint_alone(tmp_path):
    source = deit(in_chans=1)
    source.set_normalisation([0.25], [0.5])
    path = tmp_path / "new" / "x.safetensors"
    source.export(path)
    for name in (DEIT, f"{DEIT}.fb_in1k"):  # a tag of pretrained weights makes no other architecture
        backbone = Backbone(name, checkpoint=path)
        assert same_weights(backbone, source)
        assert (backbone.mean, backbone.std, backbone.input_size) == ((0.25,), (0.5,), (1, 28, 42))
    assert backbone.timm_kwargs == {**TOKENS, "in_chans": 1}


def test_an_export_is_loaded_by_plain_timm(tmp_path):
    source = deit()
    source.export(tmp_path / "x.safetensors", notes={"accuracy": 90.5, "commit": None})
    plain = timm.create_model(DEIT, checkpoint_path=str(tmp_path / "x.safetensors"), **TOKENS)
    assert same_weights(plain, source.model)
    with safetensors.safe_open(tmp_path / "x.safetensors", framework="pt") as file:
        metadata = {key: value for key, value in file.metadata().items() if key != "format"}
    assert {key: json.loads(value) for key, value in metadata.items()} == {
        "timm_name": DEIT,
        "timm_kwargs": TOKENS,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "evaluation": {
            "image_size": [28, 42],
            "crop_pct": 0.9,
            "interpolation": "bicubic",
            "crop_mode": "center",
        },
        "accuracy": 90.5,
        "commit": None,
    }


def test_a_float16_export_is_loaded_into_float32(tmp_path):
    source, path = shaken(Backbone("test_resnet")), tmp_path / "x.safetensors"
    source.export(path, dtype=torch.float16)
    stored = safetensors.torch.load_file(path)
    assert {value.dtype for value in stored.values()} == {torch.float16, torch.int64}  # batch norm counts
    assert path.stat().st_size < 0.6 * sum(p.numel() * 4 for p in source.parameters())
    loaded = Backbone("test_resnet", checkpoint=path)
    for a, b in zip(loaded.parameters(), source.parameters(), strict=True):
        assert a.dtype == torch.float32
        assert torch.equal(a, b.half().float())


def test_explicit_keywords_win_over_those_of_the_file(tmp_path):
    source = deit(drop_path_rate=0.1)
    source.export(tmp_path / "x.safetensors")
    backbone = Backbone(DEIT, checkpoint=tmp_path / "x.safetensors", timm_kwargs={"drop_path_rate": 0.3})
    assert backbone.timm_kwargs == {**TOKENS, "drop_path_rate": 0.3}
    assert backbone.model.blocks[-1].drop_path1.drop_prob == pytest.approx(0.3)


def test_an_export_of_another_model_says_what_it_is(tmp_path):
    path = tmp_path / "x.safetensors"
    deit().export(path)
    message = error_of("cait_xxs24_224", checkpoint=path, timm_kwargs=TOKENS)
    assert "does not fit cait_xxs24_224" in message
    assert f"the file is of {DEIT} with" in message
    assert "'embed_dim': 16" in message


def test_parameters_that_two_modules_share_are_exported(tmp_path):
    timm_kwargs = {"embed_dims": [8] * 4, "serial_depths": [1] * 4, "num_classes": 2, "img_size": 32}
    source, path = Backbone("coat_lite_tiny", timm_kwargs=timm_kwargs), tmp_path / "x.safetensors"
    source.export(path)
    assert same_weights(Backbone("coat_lite_tiny", checkpoint=path), source)


def test_an_export_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    source = deit()
    source.export(path)
    before = path.read_bytes()
    write = Path.write_bytes

    def full_disk(self, data):
        write(self, data[:100])
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="no space"):
        shaken(source).export(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]

    written = []
    monkeypatch.setattr(Path, "write_bytes", lambda self, data: (written.append(self), write(self, data)))
    source.export(path)
    assert path not in written
    assert path.read_bytes() != before


def test_an_export_can_be_read_by_those_who_can_read_other_files(tmp_path):
    (tmp_path / "other").touch()
    deit().export(tmp_path / "x.safetensors")
    assert (tmp_path / "x.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


# --- names and keywords


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("deit_tiny_patch16_225", "deit_tiny_patch16_224"),
        ("deit_tny_patch16_224.fb_in1k", "deit_tiny_patch16_224"),
        ("cait_s24_22", "cait_s24_224"),
        ("Resnet18", "resnet18"),
        ("qqqq", None),
        ("", None),
    ],
)
def test_an_unknown_name(name, nearest):
    message = error_of(name)
    assert f"{name!r}" in message
    assert message.endswith(f"did you mean {nearest!r}?") if nearest else "did you mean" not in message


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("deit_tiny_patch16_224.nope", "Invalid pretrained tag"),
        ("timm/resnet18", "hf-hub:timm/resnet18"),
        ("ftp:resnet18", "hf-hub, local-dir"),
        ("local-dir:/no/such/folder", "/no/such/folder"),
    ],
)
def test_a_source_that_does_not_exist(name, reason):
    message = error_of(name)
    assert name in message
    assert reason in message


@pytest.mark.parametrize(
    ("name", "keyword", "nearest"),
    [
        (DEIT, "embed_dm", "embed_dim"),
        (DEIT, "drop_pth_rate", "drop_path_rate"),
        ("deit_tiny_distilled_patch16_224", "num_head", "num_heads"),
        ("cait_xxs24_224", "depht", "depth"),
        ("swin_tiny_patch4_window7_224", "window_sz", "window_size"),
        ("convnext_atto", "kernel_size", "kernel_sizes"),
        ("resnet18", "block_reduce", "block_reduce_first"),
        ("efficientnet_b0", "drop_pth_rate", "drop_path_rate"),
        ("repvgg_a0", "drop_pth_rate", "drop_path_rate"),  # the model's own keyword
        ("repvgg_a0", "num_featurs", "num_features"),  # a keyword of its config class
        ("poolformer_s12", "mlp_actt", "mlp_act"),  # words its own error
    ],
)
def test_an_unknown_keyword(name, keyword, nearest):
    assert error_of(name, timm_kwargs={keyword: 1}) == (
        f"timm_kwargs: {name} has no keyword {keyword!r}; did you mean {nearest!r}?"
    )


def test_an_unknown_keyword_like_no_other():
    message = error_of(DEIT, timm_kwargs={"qqqq": 1})
    assert message == f"timm_kwargs: {DEIT} has no keyword 'qqqq'"


def test_keywords_that_timm_refuses():
    message = error_of(DEIT, timm_kwargs={"embed_dim": 17, "num_heads": 2})
    assert DEIT in message
    assert "17" in message


@pytest.mark.parametrize("keyword", ["pretrained", "checkpoint_path", "features_only"])
def test_keywords_that_are_not_timms_to_take(keyword):
    assert f"'{keyword}' does not belong there" in error_of(DEIT, timm_kwargs={keyword: True})


def test_a_keyword_that_no_file_can_carry():
    assert "which a file can carry" in error_of(DEIT, timm_kwargs={"norm_layer": nn.LayerNorm})


def test_the_callers_keywords_are_left_alone():
    timm_kwargs = {**TOKENS, "img_size": (28, 42)}
    backbone = Backbone(DEIT, timm_kwargs=timm_kwargs)
    assert timm_kwargs == {**TOKENS, "img_size": (28, 42)}
    assert backbone.description()["timm_kwargs"] == json.loads(json.dumps(timm_kwargs))


# --- weights from timm's hub


@pytest.fixture
def no_network(tmp_path, monkeypatch):
    """An empty cache, and a hub where every connection is refused."""
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.mark.parametrize("name", ["test_vit", "test_vit.r160_in1k", "hf-hub:timm/test_vit.r160_in1k"])
def test_pretrained_without_a_network_is_one_line_and_soon(no_network, name):
    start = time.monotonic()
    message = error_of(name, pretrained=True)
    assert time.monotonic() - start < 10
    assert name in message
    assert "pretrained" in message
    assert message.endswith("without a network, give a checkpoint file")
    assert not huggingface_hub.constants.HF_HUB_OFFLINE  # as it was


def test_pretrained_weights_in_the_cache_need_no_network(no_network):
    source = shaken(timm.create_model("test_vit"))
    folder = no_network / "models--timm--test_vit.r160_in1k"
    commit = 40 * "a"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    (folder / "snapshots" / commit).mkdir(parents=True)
    save(source.state_dict(), folder / "snapshots" / commit / "model.safetensors")
    backbone = Backbone("test_vit", pretrained=True)
    assert same_weights(backbone.model, source)
    assert backbone.has_weights
    # timm's own message here has a line for each weight
    message = error_of("test_vit", pretrained=True, timm_kwargs={"embed_dim": 32})
    assert "test_vit with pretrained weights" in message
    assert "size mismatch" in message


def test_pretrained_weights_that_do_not_exist(no_network):
    assert "No pretrained weights exist" in error_of("vit_small_patch16_36x1_224", pretrained=True)


def test_a_model_in_a_local_folder(tmp_path):
    source = timm.create_model(DEIT, **TOKENS)
    shaken(source)
    timm.models.save_for_hf(source, str(tmp_path), model_args=TOKENS)
    backbone = Backbone(f"local-dir:{tmp_path}", pretrained=True)
    assert same_weights(backbone.model, source)
    assert backbone.input_size == (3, 28, 42)
    assert len(backbone.layers) == 3


def test_only_this_file_knows_timms_forward_intermediates():
    package = Path(inspect.getfile(sys.modules["distill_dynamics"])).parent
    users = [path.name for path in package.rglob("*.py") if ".forward_intermediates(" in path.read_text()]
    assert users == ["backbone.py"]
