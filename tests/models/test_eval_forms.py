"""What timm's modules compute in their forms without gradients, against timm's own."""

import copy
import functools

import pytest
import timm
import torch
from torch import nn

from distill_dynamics import Backbone
from distill_dynamics.models.eval_forms import EvalMlp, EvalTalkingHeads, use_eval_forms

# At 64 tokens the BLAS library computes the mixing of 4 heads, at 16 a loop of torch's own.
CAIT = {"img_size": 28, "in_chans": 1, "embed_dim": 24, "depth": 3, "num_classes": 10}
SIZES = {"64 tokens": CAIT | {"img_size": 32, "patch_size": 4}, "16 tokens": CAIT | {"patch_size": 7}}


def pair(name, **kwargs):
    """A model of timm's with weights of a trained one's size, and its copy in the other forms."""
    torch.manual_seed(0)
    model = timm.create_model(name, **kwargs).eval().requires_grad_(False)
    for parameter in model.parameters():  # layer scales and biases begin as next to nothing
        torch.nn.init.normal_(parameter, std=0.2)
    other = copy.deepcopy(model)
    use_eval_forms(other)
    return model, other


@torch.no_grad()
def outputs(model, images):
    """Logits and all maps, one tensor after the other."""
    final, maps = model.forward_intermediates(images, norm=False)
    return [model.forward_head(final), *maps]


@functools.cache
def products_agree():
    """Whether this machine's BLAS gives the same bits for heads that are mixed last and where they lie."""
    torch.manual_seed(0)
    x, weight = torch.randn(5, 4, 64, 64), torch.randn(4, 4)
    last = (x.permute(0, 2, 3, 1) @ weight.T).permute(0, 3, 1, 2)
    return torch.equal(last, (weight.expand(5, -1, -1) @ x.flatten(2)).view_as(x))


def equal(some, others):
    """Whether every tensor is the other's, to the bit where products are, and none is constant."""
    near = 0 if products_agree() else 1e-5
    return all(
        (a - b).abs().max() <= near * a.abs().max() and a.std() > 0 for a, b in zip(some, others, strict=True)
    )


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("part", [1, 2 * 4 * 64 * 64 * 4, 2**20])
def test_a_cait_gives_every_bit_of_timms(size, batch, part, monkeypatch):
    monkeypatch.setattr("distill_dynamics.models.eval_forms.PART", part)  # attention of one image, two, all
    model, other = pair("cait_xxs24_224", **SIZES[size])
    images = torch.randn(batch, 1, *model.patch_embed.img_size)
    assert any(type(module) is EvalTalkingHeads for module in other.modules())
    assert equal(outputs(model, images), outputs(other, images))


SMALL = {
    "vit_tiny_patch16_224": {"img_size": 64, "embed_dim": 48, "depth": 3, "num_heads": 3},
    "beit_base_patch16_224": {"img_size": 64, "embed_dim": 48, "depth": 3, "num_heads": 3},
    "swin_tiny_patch4_window7_224": {"img_size": 64, "window_size": 4, "embed_dim": 24, "depths": (1,) * 4},
    "convnext_tiny": {"depths": (1,) * 4, "dims": (24, 48, 96, 192)},
}


@pytest.mark.parametrize("name", SMALL)
def test_other_models_give_every_bit_of_timms(name):
    model, other = pair(name, **SMALL[name])
    assert any(type(module) is EvalMlp for module in other.modules())
    images = torch.randn(3, 3, 64, 64)
    assert equal(outputs(model, images), outputs(other, images))


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_in_half_precision_it_is_as_near_to_float32_as_timms(half):
    model, other = pair("cait_xxs24_224", **SIZES["64 tokens"])
    images = torch.randn(5, 1, 32, 32)
    exact = outputs(model, images)
    with torch.autocast("cpu", half):
        theirs, ours = outputs(model, images), outputs(other, images)
    for a, b, c in zip(exact, theirs, ours, strict=True):
        assert b.dtype == c.dtype
        assert (c - a).abs().mean() <= 1.2 * (b - a).abs().mean()


def test_gradients_are_timms():
    model, other = pair("cait_xxs24_224", **SIZES["64 tokens"])
    images = torch.randn(2, 1, 32, 32)
    for training in (False, True):
        found = []
        for one in (model, other):
            one.requires_grad_().train(training).zero_grad()
            one(images).square().sum().backward()
            found.append([parameter.grad.clone() for parameter in one.parameters()])
        assert equal(*found)


def test_names_and_weights_stay_timms():
    model, other = pair("cait_xxs24_224", **SIZES["16 tokens"])
    assert [*other.state_dict()] == [*model.state_dict()]
    timm.create_model("cait_xxs24_224", **SIZES["16 tokens"]).load_state_dict(other.state_dict())


@pytest.mark.parametrize("place", ["mlp.act", "mlp.fc1", "mlp.fc2", "attn", "attn.proj_l", "attn.proj_drop"])
def test_a_hook_sees_what_it_sees_in_timms_model(place):
    model, other = pair("cait_xxs24_224", **SIZES["64 tokens"])
    images, seen = torch.randn(2, 1, 32, 32), []
    for one in (model, other):
        module = one.get_submodule(f"blocks.1.{place}")
        module.register_forward_hook(lambda module, given, made: seen.extend([*given, made]))
        outputs(one, images)
    assert len(seen) == 4
    assert equal(seen[:2], seen[2:])


@pytest.mark.parametrize("place", ["mlp.act", "mlp.fc1", "attn", "attn.proj_l", "attn.proj_drop"])
def test_a_forward_that_was_put_in_the_place_of_a_parts_own_is_called(place):
    model, other = pair("cait_xxs24_224", **SIZES["64 tokens"])
    images, called = torch.randn(2, 1, 32, 32), []
    part = other.get_submodule(f"blocks.1.{place}")
    own = part.forward
    part.forward = lambda *given: called.append(place) or own(*given)
    assert equal(outputs(model, images), outputs(other, images))
    assert called


class Twice(nn.Module):
    def forward(self, x):
        return 2 * x


OTHER_PARTS = {
    "attn": Twice,
    "attn.proj_l": lambda: nn.Sequential(nn.Linear(4, 4)),  # has no weight of its own, as a layer in 8 bits
    "attn.attn_drop": Twice,
    "attn.proj_drop": Twice,
    "mlp": Twice,
    "mlp.fc1": nn.Identity,  # whose answer is its input
    "mlp.act": nn.ReLU,
    "mlp.drop1": lambda: nn.Dropout(0.5),  # in training mode, as for Monte Carlo dropout
    "mlp.norm": Twice,
    "drop_path": Twice,
}


@pytest.mark.parametrize("place", OTHER_PARTS)
def test_a_part_that_was_replaced_computes_what_it_computes_in_timms_model(place):
    size = {"mlp_ratio": 1.0} if place == "mlp.fc1" else {}
    model, other = pair("cait_xxs24_224", **SIZES["64 tokens"], **size)
    images, part, found = torch.randn(2, 1, 32, 32), OTHER_PARTS[place](), []
    for one in (model, other):
        one.set_submodule(f"blocks.1.{place}", part)
        torch.manual_seed(1)
        found.append(outputs(one, images))
    assert equal(*found)


@torch.no_grad()
def test_no_images_give_no_answers():
    model, other = pair("cait_xxs24_224", **SIZES["64 tokens"])
    none = torch.empty(0, 1, 32, 32)
    assert other(none).shape == model(none).shape == (0, 10)


@pytest.mark.filterwarnings("ignore")  # torch.jit is deprecated, and many still use it
@pytest.mark.parametrize("how", ["torch.jit.trace", "torch.jit.script", "torch.export"])
@torch.no_grad()
def test_what_is_made_of_two_images_takes_five(how, monkeypatch):
    monkeypatch.setattr("distill_dynamics.models.eval_forms.PART", 1)
    model, other = pair("cait_xxs24_224", **SIZES["64 tokens"])
    images = torch.randn(5, 1, 32, 32)
    if how == "torch.jit.trace":
        made = torch.jit.trace(other, images[:2])
    elif how == "torch.jit.script":
        made = torch.jit.script(other)
    else:
        free = ({0: torch.export.Dim("batch", min=1)},)
        made = torch.export.export(other, (images[:2],), dynamic_shapes=free, strict=False).module()
    for count in (1, 5):
        torch.testing.assert_close(made(images[:count]), model(images[:count]))


def test_attention_is_what_the_blocks_with_gradients_have():
    torch.manual_seed(0)
    backbone = Backbone("cait_xxs24_224", timm_kwargs=SIZES["64 tokens"]).eval()
    images = torch.rand(2, 1, 32, 32)
    with_gradients = backbone(images, layers="all", attention=[1, 3])
    with torch.no_grad():
        without = backbone(images, layers="all", attention=[1, 3])
    assert len(without.attention) == 2
    for a, b in zip(with_gradients.attention, without.attention, strict=True):
        assert torch.equal(a, b)
