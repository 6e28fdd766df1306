"""What a loss may read of a model: every word against timm, and attention against numpy."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import VIT
from test_terms import deit, images, plain

from distill_dynamics import Backbone, UserError
from distill_dynamics.models.features import read, width


def test_every_word_is_what_timm_gives():
    name = "deit_tiny_distilled_patch16_224"
    backbone = deit(name).eval()
    model = plain(backbone, name)
    once = {("logits", None), ("pooled", None), ("dist_logits", None)}
    words = {("map", 1), ("map", 2), ("prefix", 2), ("class_token", 1), ("class_token", 2)} | once
    found = read(backbone, images(), words)
    final, blocks = model.forward_intermediates(images(), return_prefix_tokens=True, norm=False)
    assert found.keys() == words
    for block in (1, 2):
        torch.testing.assert_close(found["map", block], blocks[block - 1][0])
    torch.testing.assert_close(found["prefix", 2], blocks[1][1])
    for block in (1, 2):
        torch.testing.assert_close(found["class_token", block], blocks[block - 1][1][:, 0])
    assert found["prefix", 2].shape == (3, 2, VIT["embed_dim"])
    torch.testing.assert_close(found["pooled", None], model.forward_head(final, pre_logits=True))
    torch.testing.assert_close(found["logits", None], model(images()))
    torch.testing.assert_close(found["dist_logits", None], model(images()))  # the mean, in evaluation


def test_the_distillation_token_answers_by_itself_in_training_and_only_if_it_is_read():
    name = "deit_tiny_distilled_patch16_224"
    backbone = deit(name).train()
    model = plain(backbone, name).train()
    both = read(backbone, images(), {("logits", None), ("dist_logits", None), ("map", 1)})
    alone = read(backbone, images(), {("logits", None)})
    model.set_distilled_training(True)
    of_class, of_token = model(images())
    torch.testing.assert_close(both["logits", None], of_class)
    torch.testing.assert_close(both["dist_logits", None], of_token)
    torch.testing.assert_close(alone["logits", None], (of_class + of_token) / 2)
    # Without the token it is the model's answer.
    other = deit().train()
    same = read(other, images(), {("dist_logits", None)})
    torch.testing.assert_close(same["dist_logits", None], other.model(images()))


def by_hand(block, tokens, prefix):
    """Attention of a block of timm's ViT: softmax(q kᵀ / √d), patches alone, in numpy."""
    attention = block.attn
    normed = block.norm1(tokens)
    qkv = F.linear(normed, attention.qkv.weight, attention.qkv.bias).detach().numpy()
    batch, n, _ = qkv.shape
    q, k, _ = qkv.reshape(batch, n, 3, attention.num_heads, -1).transpose(2, 0, 3, 1, 4)
    scores = q @ k.transpose(0, 1, 3, 2) / np.sqrt(q.shape[-1])
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    weights = weights[:, :, prefix:, prefix:]
    return weights / weights.sum(-1, keepdims=True)


def test_attention_is_softmax_of_qk_between_patches_with_rows_of_sum_one():
    backbone = deit().eval()
    seen = []
    backbone.model.blocks[1].register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    fused = backbone.model.blocks[1].attn.fused_attn
    found = read(backbone, images(), {("attention", 2)})["attention", 2]
    expected = by_hand(backbone.model.blocks[1], seen[0], prefix=1)
    assert found.shape == (3, VIT["num_heads"], 4, 4)
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.sum(-1).detach().numpy(), 1, rtol=1e-5)
    assert backbone.model.blocks[1].attn.fused_attn == fused
    assert not backbone.model.blocks[1].attn.attn_drop._forward_pre_hooks


def test_cait_has_attention_and_no_prefix():
    cait = Backbone("cait_xxs24_224", timm_kwargs={**VIT, "depth": 2})
    attention = read(cait, images(), {("attention", 1)})["attention", 1]
    np.testing.assert_allclose(attention.sum(-1).detach().numpy(), 1, rtol=1e-5)
    assert (attention >= 0).all()
    with pytest.raises(UserError, match="no prefix tokens"):
        read(cait, images(), {("prefix", 1)})


def test_a_naflex_vit_gives_its_class_token_which_comes_before_its_registers():
    kwargs = {**VIT, "depth": 2, "num_classes": 0}
    backbone = Backbone(
        "vit_small_patch14_reg4_dinov2", timm_kwargs={**kwargs, "img_size": 28, "use_naflex": True}
    ).eval()
    with torch.no_grad():
        backbone.model.embeds.cls_token.fill_(3.0)
        for block in backbone.model.blocks:  # what enters a block leaves it
            for branch in (block.attn.proj, block.mlp.fc2):
                branch.weight.zero_()
                branch.bias.zero_()
    found = read(backbone, images(), {("class_token", 2), ("prefix", 2)})
    assert found["prefix", 2].shape[1] == 5
    torch.testing.assert_close(found["class_token", 2], torch.full((3, VIT["embed_dim"]), 3.0))


@pytest.mark.parametrize(
    ("name", "kwargs", "registers"),
    [
        ("cait_xxs24_224", {**VIT, "depth": 2}, False),
        ("vit_base_patch16_siglip_224", {**VIT, "depth": 2}, False),
        ("vit_base_patch16_reg4_gap_256", {**VIT, "depth": 2}, True),
        ("test_resnet", {}, False),
    ],
)
def test_a_model_without_class_tokens_is_one_line_that_names_pooled_features(name, kwargs, registers):
    backbone = Backbone(name, timm_kwargs=kwargs)
    with pytest.raises(UserError, match=r"no class token that can be read.*losses\.PooledKD") as refusal:
        read(backbone, torch.randn(1, *backbone.input_size), {("class_token", 1)})
    assert ("registers" in str(refusal.value)) == registers


@pytest.mark.parametrize(
    ("name", "pool"),
    [
        ("vit_small_patch14_dinov2", "token"),
        ("vit_small_patch14_reg4_dinov2", "token"),
        ("vit_base_patch16_siglip_224", "map"),
        ("vit_base_patch16_reg4_gap_256", "avg"),
        ("eva02_tiny_patch14_224", "avg"),
        ("vit_small_patch16_dinov3", "avg"),
        ("cait_xxs24_224", "token"),
    ],
)
def test_a_vit_without_a_head_gives_its_pool_of_its_final_tokens(name, pool):
    backbone = Backbone(name, timm_kwargs={**VIT, "depth": 2, "num_classes": 0}).eval()
    model = plain(backbone, name, num_classes=0)
    tokens = model.forward_features(images())
    prefix = getattr(model, "num_prefix_tokens", 0) if pool != "token" else 0
    by_hand = {
        "token": lambda: tokens[:, 0],
        "avg": lambda: tokens[:, prefix:].mean(1),
        "map": lambda: model.attn_pool(tokens),
    }[pool]()
    if pool == "avg":
        by_hand = model.fc_norm(by_hand)
    found = read(backbone, images(), {("pooled", None), ("logits", None), ("map", 2)})
    torch.testing.assert_close(found["pooled", None], by_hand)
    assert found["logits", None] is None
    assert found["pooled", None].shape == (3, width(backbone, "pooled", None))
    assert found["map", 2].shape[1] == width(backbone, "map", 2)


@pytest.mark.parametrize(
    "name",
    [
        "test_resnet",
        "resnet18",
        "test_convnext",
        "test_efficientnet",
        "test_vit",
        "mobilenetv4_conv_small_050",
        "swin_tiny_patch4_window7_224",
        "convnextv2_atto",
        "repvit_m0_9",
        "mobilenetv3_small_050",
        "fastvit_t8",
    ],
)
def test_a_model_without_a_head_has_the_width_it_states(name):
    backbone = Backbone(name, timm_kwargs={"num_classes": 0}).eval()
    found = read(backbone, torch.randn(2, *backbone.input_size), {("pooled", None)})
    assert found["pooled", None].shape == (2, width(backbone, "pooled", None))


def test_blocks_of_a_model_that_is_trained_on_some_of_its_patches_give_no_maps():
    """Two of four patches would be a map of 2 x 2 with half the channels."""
    kwargs = {**VIT, "depth": 2, "patch_drop_rate": 0.5}
    backbone = Backbone("deit_tiny_patch16_224", timm_kwargs=kwargs)
    for word in ("map", "class_token"):
        with pytest.raises(
            UserError, match=r"timm_kwargs\.patch_drop_rate 0\.5 leaves out patches in training"
        ):
            read(backbone.train(), images(), {(word, 1)})
    trained = read(backbone, images(), {("pooled", None), ("logits", None)})
    assert trained["pooled", None].shape == (3, VIT["embed_dim"])
    assert read(backbone.eval(), images(), {("map", 1)})["map", 1].shape == (3, VIT["embed_dim"], 2, 2)


@pytest.mark.parametrize(("name", "shape"), [("test_vit", "101 x 64"), ("test_resnet", "96 x 5 x 5")])
def test_a_model_that_pools_nothing_has_no_pooled_features(name, shape):
    backbone = Backbone(name, timm_kwargs={"num_classes": 0, "global_pool": ""}).eval()
    with pytest.raises(
        UserError, match=f"read of an image is {shape} numbers.*leave out timm_kwargs.global_p"
    ):
        read(backbone, torch.randn(1, *backbone.input_size), {("pooled", None)})


@pytest.mark.parametrize("name", ["resnet18", "xcit_nano_12_p16_224", "swin_tiny_patch4_window7_224"])
def test_a_model_without_attention_between_its_patches_is_one_line(name):
    # XCiT's heads have more channels here than there are patches.
    backbone = Backbone(name, timm_kwargs={"img_size": 64} if name.startswith("xcit") else {})
    with pytest.raises(UserError, match=r"has no attention"):
        read(backbone, torch.randn(1, *backbone.input_size), {("attention", 2)})


@pytest.mark.parametrize("name", ["crossvit_tiny_240", "volo_d1_224"])
def test_logits_of_a_model_of_several_heads_are_its_own_beside_pooled_features(name):
    backbone = Backbone(name, timm_kwargs={"num_classes": 7}).eval()
    given = torch.randn(1, *backbone.input_size)
    with torch.no_grad():
        found = read(backbone, given, {("pooled", None), ("logits", None)})
        torch.testing.assert_close(found["logits", None], backbone.model(given))
    assert found["pooled", None].shape == (1, width(backbone, "pooled", None))


@pytest.mark.parametrize(
    "name", ["test_convnext", "test_resnet", "test_efficientnet", "vit_base_patch16_siglip_224"]
)
def test_logits_are_the_classifiers_of_the_pooled_features(name):
    backbone = Backbone(name, timm_kwargs={"num_classes": 7}).eval()
    given = torch.randn(2, *backbone.input_size)
    found = read(backbone, given, {("pooled", None), ("logits", None)})
    classifier = backbone.model.get_classifier()
    torch.testing.assert_close(classifier(found["pooled", None]), backbone.model(given))
    torch.testing.assert_close(found["logits", None], backbone.model(given))
