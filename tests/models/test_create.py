"""Names and keywords of timm's models, and what is said of those that it does not have."""

import json

import pytest
from test_backbone import DEIT, TOKENS, error_of
from torch import nn

from distill_dynamics.models.backbone import Backbone

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
