"""Batches in parts, against one pass of timm's."""

import pytest
import timm
import torch

from distill_dynamics import Backbone
from distill_dynamics.models import parts
from distill_dynamics.models.features import read

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 10}


@pytest.fixture
def backbone():
    torch.manual_seed(0)
    return Backbone("vit_tiny_patch16_224", timm_kwargs=VIT).eval()


@torch.no_grad()
def test_the_largest_tensor_is_that_of_the_wide_layer(backbone):
    hidden = 17 * 4 * 24 * 4  # tokens, width, bytes
    assert parts.largest_tensor(backbone, torch.zeros(1, 3, 32, 32)) == hidden
    stem = Backbone("resnet18", timm_kwargs={"num_classes": 10}).eval()
    assert parts.largest_tensor(stem, torch.zeros(1, 3, 64, 64)) == 64 * 32 * 32 * 4


@torch.no_grad()
def test_parts_are_of_much_the_same_size_and_follow_from_shapes(backbone, monkeypatch):
    images = torch.zeros(16, 3, 32, 32)
    assert [len(part) for part in parts.in_parts(backbone, images, backbone, "whole")] == [16]
    for at_once, sizes in ((5, [4, 4, 4, 4]), (7, [6, 5, 5]), (1, [2] * 8), (16, [16])):
        monkeypatch.setattr(parts, "PART", at_once * 17 * 4 * 24 * 4)
        assert [len(part) for part in parts.in_parts(backbone, images, backbone, "whole")] == sizes
    with torch.enable_grad():
        assert len(parts.in_parts(backbone, images, backbone, "whole")) == 1
    backbone.train()
    assert len(parts.in_parts(backbone, images, backbone, "whole")) == 1


@torch.no_grad()
def test_what_is_read_in_parts_is_what_timm_gives_at_once(backbone, monkeypatch):
    monkeypatch.setattr(parts, "PART", 1)
    images = torch.randn(7, 3, 32, 32)
    model = timm.create_model("vit_tiny_patch16_224", **VIT).eval()
    model.load_state_dict(backbone.model.state_dict())
    final, (first, second) = model.forward_intermediates(images, norm=False)
    found = read(backbone, images, {("map", 1), ("map", 2), ("logits", None), ("pooled", None)})
    for key, value in {
        ("map", 1): first,
        ("map", 2): second,
        ("logits", None): model.forward_head(final),
        ("pooled", None): model.forward_head(final, pre_logits=True),
    }.items():
        torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-6)
    assert all(len(value) == 7 for value in found.values())


def test_statistics_of_batch_norm_are_of_the_whole_batch(monkeypatch):
    monkeypatch.setattr(parts, "PART", 1)
    torch.manual_seed(0)
    backbone = Backbone("resnet10t", timm_kwargs={"num_classes": 3})
    images, key = torch.randn(6, 3, 32, 32), ("logits", None)
    with torch.no_grad():
        trained = read(backbone, images, {key})[key]
        assert torch.equal(trained, backbone.train().model(images))
        backbone.eval()
        before = {name: buffer.clone() for name, buffer in backbone.named_buffers()}
        read(backbone, images, {key})
    assert all(torch.equal(before[name], buffer) for name, buffer in backbone.named_buffers())
