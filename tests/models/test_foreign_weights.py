"""Checkpoints of other programs: loaded where one reading fits, else a line names what is in the way."""

import argparse
import json

import pytest
import safetensors.torch
import timm
import torch
from test_backbone import DEIT, TOKENS, deit, error_of, same_weights, shaken
from test_weights import save
from timm.layers import resample_abs_pos_embed

from distill_dynamics import Backbone

SQUARE = {**TOKENS, "img_size": 28}


def under(prefix, state):
    return {prefix + key: value for key, value in state.items()}


def averaged(state):
    return {key: value + 1 for key, value in state.items()}


FOREIGN = {
    "model_state_dict": lambda s: {"model_state_dict": s, "optimizer_state_dict": {"state": {}}, "epoch": 3},
    "teacher": lambda s: {"teacher": s, "args": argparse.Namespace(lr=1.0)},
    "net": lambda s: {"net": s, "acc": 91.0},
    "nested": lambda s: {"checkpoint": {"model": {"state_dict": s}}},
    "model.": lambda s: {"state_dict": under("model.", s), "loops": {}},
    "encoder.": lambda s: {"state_dict": under("encoder.", s)},
    "backbone.": lambda s: {"model": under("backbone.", s)},
    "module.": lambda s: under("module.", s),
    "_orig_mod.": lambda s: under("_orig_mod.", s),
    "several": lambda s: {"state_dict": under("model._orig_mod.module.encoder.", s)},
    "compiled blocks": lambda s: {k.replace("blocks.1.", "blocks.1._orig_mod."): v for k, v in s.items()},
    "beside others": lambda s: {"state_dict": {**under("net.", s), "loss.weight": torch.ones(3)}},
    "ema beside": lambda s: {"model": s, "model_ema": averaged(s)},
    "ema in it": lambda s: {"state_dict": {**under("model.", s), **under("ema_model.module.", averaged(s))}},
    "ema inside": lambda s: {"state_dict": {**s, **under("ema.", averaged(s))}},
    "ema alone": lambda s: {"ema_state_dict": s},
    "twice the same": lambda s: {"model": s, "best": {"weights": dict(s)}},
    "by names": lambda s: {
        "params": s,
        "opt_state": {"mu": averaged(s)},
        "optimizer": {"exp_avg": averaged(s)},
    },
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_one_reading_that_fits_is_loaded(kind, tmp_path, recwarn):
    source = shaken(timm.create_model(DEIT, **TOKENS))
    path = save(FOREIGN[kind](source.state_dict()), tmp_path / "x.pth")
    assert same_weights(Backbone(DEIT, checkpoint=path, timm_kwargs=TOKENS).model, source)
    assert not recwarn.list
    if kind in ("model.", "encoder.", "beside others"):
        content = FOREIGN[kind](source.state_dict())["state_dict"]
        path = save(content, tmp_path / "x.safetensors")
        assert same_weights(Backbone(DEIT, checkpoint=path, timm_kwargs=TOKENS).model, source)


def test_several_readings_are_named(tmp_path):
    state = deit().model.state_dict()
    path = save({"student": state, "teacher": averaged(state)}, tmp_path / "dino.pth")
    assert "2 sets of weights that fit" in error_of(DEIT, checkpoint=path, timm_kwargs=TOKENS)
    both = {"state_dict": {**under("student.model.", state), **under("teacher.model.", averaged(state))}}
    message = error_of(DEIT, checkpoint=save(both, tmp_path / "x.pth"), timm_kwargs=TOKENS)
    assert "'state_dict.student.model', 'state_dict.teacher.model'" in message
    # Of another shape, it does not fit, and is not meant.
    other = timm.create_model(DEIT, **{**TOKENS, "depth": 2}).state_dict()
    path = save({"model": state, "teacher": other}, tmp_path / "y.pth")
    assert Backbone(DEIT, checkpoint=path, timm_kwargs=TOKENS).has_weights


def test_what_is_in_the_way_is_named(tmp_path):
    state = timm.create_model("resnet10t").state_dict()
    path = save({"state_dict": under("vision.tower.", state)}, tmp_path / "x.pth")
    message = error_of(DEIT, checkpoint=path, timm_kwargs=TOKENS)
    assert "all its keys (of state_dict) begin with 'vision.tower.'" in message
    path = save(state, tmp_path / "y.safetensors")
    assert "none is one of the model's: the first is 'bn1" in error_of(
        DEIT, checkpoint=path, timm_kwargs=TOKENS
    )
    # Under a prefix the rest must fit as well: one block more is another model.
    deeper = deit(depth=4).model.state_dict()
    path = save({"state_dict": under("encoder.", deeper)}, tmp_path / "z.pth")
    message = error_of(DEIT, checkpoint=path, timm_kwargs=TOKENS)
    assert "blocks.3." in message
    assert "not in the model (of state_dict.encoder)" in message


@pytest.mark.parametrize("name", [DEIT, "deit_tiny_distilled_patch16_224", "test_resnet", "test_convnext"])
def test_another_number_of_classes_is_a_fresh_head_if_that_is_set(name, tmp_path):
    kwargs = {key: value for key, value in TOKENS.items() if key != "num_classes"} if "deit" in name else {}
    source = shaken(timm.create_model(name, num_classes=7, **kwargs))
    path = save({"model": source.state_dict()}, tmp_path / "x.pth")
    assert "7" in error_of(name, checkpoint=path, timm_kwargs=kwargs)
    with pytest.warns(
        UserWarning, match="its head of 7 classes is left out, and the model has a fresh one of 4"
    ):
        four = Backbone(name, checkpoint=path, timm_kwargs={**kwargs, "num_classes": 4})
    with pytest.warns(UserWarning, match=r"its head of 7 classes is left out \(num_classes\)"):
        none = Backbone(name, checkpoint=path, timm_kwargs={**kwargs, "num_classes": 0})
    trunk = none.model.state_dict()
    assert len(trunk) > 10
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in trunk.items())
    assert all(torch.equal(value, four.model.state_dict()[key]) for key, value in trunk.items())
    headless = save(trunk, tmp_path / "headless.pth")
    with pytest.warns(UserWarning, match="it has no head, and the model has a fresh one of 4"):
        Backbone(name, checkpoint=headless, timm_kwargs={**kwargs, "num_classes": 4})


def test_position_embeddings_on_another_grid_are_resampled_as_timm_does(tmp_path):
    """The shapes of DINOv2's file of 518 pixels, at 224."""
    small = {"embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 0}
    name = "vit_small_patch14_dinov2"
    source = shaken(timm.create_model(name, **small))
    assert source.pos_embed.shape == (1, 1 + 37 * 37, 16)
    path = save(source.state_dict(), tmp_path / "dinov2.pth")
    with pytest.warns(UserWarning, match=r"pos_embed from \[1, 1370, 16\] to \[1, 257, 16\]"):
        backbone = Backbone(name, checkpoint=path, timm_kwargs={**small, "img_size": 224})
    expected = resample_abs_pos_embed(source.pos_embed, (16, 16), num_prefix_tokens=1)
    assert torch.equal(backbone.model.pos_embed, expected)
    rest = {key: value for key, value in backbone.model.state_dict().items() if key != "pos_embed"}
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in rest.items())
    # As its authors name things, below a prefix, and with a head that it does not have.
    authors = {**source.state_dict(), "mask_token": torch.zeros(1, 16)}
    path = save({"teacher": under("backbone.", authors)}, tmp_path / "authors.pth")
    with pytest.warns(UserWarning, match="position embeddings resampled"):
        other = Backbone(name, checkpoint=path, timm_kwargs={**small, "img_size": 224, "num_classes": 3})
    assert torch.equal(other.model.pos_embed, expected)


def test_relative_positions_are_resampled_too(tmp_path):
    swin = {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "num_classes": 3}
    source = shaken(timm.create_model("swin_tiny_patch4_window7_224", img_size=32, window_size=4, **swin))
    path = save(source.state_dict(), tmp_path / "swin.pth")
    with pytest.warns(UserWarning, match="relative_position_bias_table"):
        Backbone(
            "swin_tiny_patch4_window7_224",
            checkpoint=path,
            timm_kwargs={**swin, "img_size": 64, "window_size": 8},
        )


def test_an_export_of_ours_on_another_grid(tmp_path):
    source = deit(img_size=28)
    source.export(tmp_path / "x.safetensors")
    with pytest.warns(UserWarning, match="position embeddings resampled"):
        backbone = Backbone(checkpoint=tmp_path / "x.safetensors", timm_kwargs={"img_size": 56})
    assert backbone.input_size == (3, 56, 56)


def test_patches_of_another_size_are_another_model(tmp_path):
    path = save(deit(img_size=28).model.state_dict(), tmp_path / "x.pth")
    message = error_of(DEIT, checkpoint=path, timm_kwargs={**SQUARE, "patch_size": 7})
    assert "is [16, 3, 14, 14] in the file" in message or "pos_embed" in message


# --- what a file says of itself, and what the user says of it


def test_a_name_may_be_left_out_where_the_file_has_it(tmp_path):
    source = deit()
    source.export(tmp_path / "x.safetensors", notes={"val_acc1": 71.5})
    backbone = Backbone(checkpoint=tmp_path / "x.safetensors")
    assert (backbone.name, backbone.stated_accuracy) == (DEIT, 71.5)
    path = save(source.model.state_dict(), tmp_path / "x.pth")
    assert "does not say what it is of" in error_of(checkpoint=path, timm_kwargs=TOKENS)


@pytest.mark.parametrize(
    ("key", "text", "word"),
    [
        ("mean", "[0.1", "'mean' is no JSON"),
        ("epoch", "NaNN", "'epoch'"),
        ("std", None, "no std"),
        ("std", "[0, 0, 0]", "'std' cannot be"),
        ("std", "[NaN]", "'std' cannot be"),
        ("mean", "[]", "'mean' cannot be"),
        ("mean", "null", "'mean' cannot be"),
        ("timm_name", "7", "'timm_name' cannot be"),
        ("timm_kwargs", "[]", "'timm_kwargs' cannot be"),
        ("evaluation", "3", "'evaluation' cannot be"),
        ("evaluation", '{"image_size": [28]}', "'evaluation' cannot be"),
        ("evaluation", '{"crop_pct": 0}', "'evaluation' cannot be"),
    ],
)
def test_a_broken_header_is_one_line(tmp_path, key, text, word):
    told = {"timm_name": json.dumps(DEIT), "timm_kwargs": "{}", "mean": "[0.5]", "std": "[0.5]", key: text}
    told = {name: value for name, value in told.items() if value is not None}
    path = tmp_path / "x.safetensors"
    safetensors.torch.save_file(deit().model.state_dict(), path, metadata=told)
    assert word in error_of(DEIT, checkpoint=path)


@pytest.mark.parametrize("std", [[0.0, 0.0, 0.0], "x", [], None])
def test_a_hub_folder_whose_normalisation_cannot_be(tmp_path, std):
    deit().export_folder(tmp_path / "student")
    path = tmp_path / "student" / "config.json"
    content = json.loads(path.read_text())
    content["pretrained_cfg"]["std"] = std
    path.write_text(json.dumps(content))
    assert "is no config of timm's" in error_of(checkpoint=tmp_path / "student")


def test_a_normalisation_that_is_given(tmp_path):
    source = deit()
    source.export(tmp_path / "x.safetensors")
    for file in (None, tmp_path / "x.safetensors"):
        backbone = Backbone(DEIT, checkpoint=file, timm_kwargs=TOKENS, mean=[0.1, 0.2, 0.3], std=[0.5])
        assert (backbone.mean, backbone.std) == ((0.1, 0.2, 0.3), (0.5, 0.5, 0.5))
        assert backbone.normalised_by == "given"
    assert Backbone(DEIT, checkpoint=tmp_path / "x.safetensors").normalised_by == "weights"
    assert Backbone(DEIT, timm_kwargs=TOKENS, crop_pct=0.75).evaluation.crop_pct == 0.75


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"mean": [0.5]}, "both mean and std"),
        ({"std": [0.5]}, "both mean and std"),
        ({"mean": [0.5, 0.5], "std": [0.5]}, "mean has 2 numbers for 3 channels"),
        ({"mean": [0.5], "std": [0.0]}, "std positive"),
        ({"mean": [float("nan")], "std": [1.0]}, "finite"),
        ({"mean": [123.7, 116.3, 103.5], "std": [58.4, 57.1, 57.4]}, "divide by 255"),
        ({"crop_pct": 0.0}, "crop_pct"),
        ({"crop_pct": 1.5}, "crop_pct"),
    ],
)
def test_a_normalisation_that_cannot_be(given, word):
    assert word in error_of(DEIT, timm_kwargs=TOKENS, **given)
