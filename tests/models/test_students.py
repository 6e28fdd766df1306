"""Students whose last block has another width, beside timm's and torch's modules put together by hand."""

import subprocess
import sys

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from distill_dynamics.callbacks.conflict import block_parameters
from distill_dynamics.errors import UserError
from distill_dynamics.models import Lift, WideLast
from distill_dynamics.models.backbone import Backbone

# A grid of 2 x 3, so that a transposed map is a wrong map.
TOKENS = {"img_size": [28, 42], "patch_size": 14, "embed_dim": 16, "depth": 3, "num_heads": 2}
TOKENS["num_classes"] = 5
DEIT, DISTILLED = "deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"
WIDTH = 24
SHAPES = {"lift": (Lift, {}), "beside": (Lift, {"lifted_head": False}), "wide": (WideLast, {})}
OTHERS = {
    "registers, layer scale": ("vit_small_patch14_reg4_dinov2", {}),
    "no class token's position": ("deit3_small_patch16_224", {}),
    "norm before the blocks": ("vit_base_patch16_clip_224", {}),
    "norm after pooling": (DEIT, {"global_pool": "avg"}),
    "headless": (DEIT, {"num_classes": 0}),
}


def student(shape, name=DEIT, **changes):
    """No zero or constant initialisation left; in eval mode."""
    cls, options = SHAPES[shape]
    made = cls(name, WIDTH, timm_kwargs={**TOKENS, **changes}, **options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return made.eval()


@pytest.fixture
def images():
    return torch.randn(2, 3, 28, 42, generator=torch.Generator().manual_seed(0))


def taking(model, state):
    """A timm model with those of the weights that have its names and shapes."""
    own = model.state_dict()
    same = {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
    model.load_state_dict({**own, **same})
    return model.eval()


def by_hand(shape, name, kwargs, state, images):
    """Logits, what the classifier reads, and the last block's tokens [B, P + N, C_t]."""
    narrow = taking(timm.create_model(name, **kwargs), state)
    x = narrow.norm_pre(narrow._pos_embed(narrow.patch_embed(images)))
    for block in narrow.blocks[:-1]:
        x = block(x)
    last = "blocks.2.widen" if shape == "wide" else "blocks.2.lift"

    def project(tokens):
        wide = F.linear(tokens, state[f"{last}.0.weight"])
        return F.layer_norm(wide, (WIDTH,), state[f"{last}.1.weight"], state[f"{last}.1.bias"], 1e-6)

    if shape == "wide":
        heads = {"embed_dim": WIDTH, "num_heads": WIDTH * kwargs["num_heads"] // kwargs["embed_dim"]}
        wide = taking(timm.create_model(name, **{**kwargs, **heads}), state)
        tokens = wide.blocks[-1](project(x))
        return *answers(wide, wide.norm(tokens)), tokens
    x = narrow.blocks[-1](x)
    tokens = project(x)
    if shape == "beside":
        return *answers(narrow, narrow.norm(x)), tokens
    if name == DISTILLED:
        of_class, of_dist = tokens[:, 0], tokens[:, 1]
        one = F.linear(of_class, state["head.weight"], state["head.bias"])
        two = F.linear(of_dist, state["head_dist.weight"], state["head_dist.bias"])
        return (one + two) / 2, (of_class + of_dist) / 2, tokens
    read = tokens[:, narrow.num_prefix_tokens :].mean(1)
    head = (state["head.weight"], state["head.bias"]) if kwargs["num_classes"] else None
    return F.linear(read, *head) if head else None, read, tokens


def answers(model, final):
    read = model.forward_head(final, pre_logits=True)
    return model.forward_head(final) if model.num_classes else None, read


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("name", "changes"), [(DEIT, {}), (DISTILLED, {}), *OTHERS.values()], ids=["deit", "distilled", *OTHERS]
)
@torch.no_grad()
def test_it_is_what_timm_and_torch_give_by_hand(shape, name, changes, images):
    made = student(shape, name, **changes)
    kwargs = {**TOKENS, **changes}
    logits, read, tokens = by_hand(shape, name, kwargs, made.model.state_dict(), images)
    prefix = tokens.shape[1] - 6
    features = made(images, [-1, 1, 2], prefix=[3], attention=[3], pooled=True)
    expected = tokens[:, prefix:].transpose(1, 2).reshape(2, WIDTH, 2, 3)
    torch.testing.assert_close(features.maps[0], expected)
    torch.testing.assert_close(features.prefix[0], tokens[:, :prefix])
    torch.testing.assert_close(features.pooled, read)
    assert [one.shape[1] for one in features.maps] == [WIDTH, 16, 16]
    assert made.channels == [16, 16, WIDTH]
    assert features.attention[0].shape == (2, 3 if shape == "wide" else 2, 6, 6)
    if logits is not None:
        torch.testing.assert_close(features.logits, logits)
        torch.testing.assert_close(made(images).logits, logits)
    torch.testing.assert_close(made(images, [3], logits=False).maps[0], expected)
    torch.testing.assert_close(made(images, [3, 3], logits=False).maps[1], expected)


@torch.no_grad()
def test_pooling_and_the_lifted_head_are_two_options(images):
    made = student("lift", global_pool="token")
    state = made.model.state_dict()
    tokens = by_hand("lift", DEIT, TOKENS, state, images)[2]
    torch.testing.assert_close(
        made(images).logits, F.linear(tokens[:, 0], state["head.weight"], state["head.bias"])
    )


def test_without_a_lifted_head_the_classifier_is_the_plain_vit_to_the_bit(images):
    made = student("beside")
    plain = taking(timm.create_model(DEIT, **TOKENS), made.model.state_dict())
    assert torch.equal(made(images, [-1]).logits, plain(images))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", [DEIT, DISTILLED])
@torch.no_grad()
def test_what_is_written_is_the_same_model_to_the_bit(shape, name, images, tmp_path):
    made = student(shape, name)
    made.export_folder(tmp_path / "student")
    made.export(tmp_path / "student.safetensors")
    expected = made(images, "all", prefix=[3], pooled=True)
    cls, options = SHAPES[shape]
    again = {
        "folder": Backbone(checkpoint=tmp_path / "student"),
        "file": Backbone(checkpoint=tmp_path / "student.safetensors"),
        "of its class": cls(name, WIDTH, checkpoint=tmp_path / "student", timm_kwargs=TOKENS, **options),
    }
    for place, model in again.items():
        features = model.eval()(images, "all", prefix=[3], pooled=True)
        for one, other in zip(expected.maps, features.maps, strict=True):
            assert torch.equal(one, other), place
        assert torch.equal(features.logits, expected.logits), place
        assert torch.equal(features.pooled, expected.pooled), place
        assert model.description() == made.description(), place
    by_timm = timm.create_model(f"local-dir:{tmp_path / 'student'}", pretrained=True).eval()
    assert torch.equal(by_timm(images), made(images).logits)


ALONE = """
import sys, timm
for folder in sys.argv[1:]:
    try:
        timm.create_model(f"local-dir:{folder}", pretrained=True)
    except RuntimeError as error:
        print(error)
import distill_dynamics.models.reshape
for folder in sys.argv[1:]:
    timm.create_model(f"local-dir:{folder}", pretrained=True)
"""


@pytest.mark.slow
def test_timm_alone_refuses_a_folder_by_its_name_and_takes_it_after_one_import(tmp_path):
    folders = [tmp_path / shape for shape in SHAPES]
    for folder in folders:
        student(folder.name).export_folder(folder)
    command = [sys.executable, "-c", ALONE, *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    refusals = [f"Unknown model ({name})" for name in ("vit_lift", "vit_lift", "vit_wide_last")]
    assert done.stdout.splitlines() == refusals


def test_another_input_size_resamples_the_positions(tmp_path):
    made = student("lift")
    made.export_folder(tmp_path)
    larger = Backbone(checkpoint=tmp_path, timm_kwargs={"img_size": [56, 42]}).model.eval()
    expected = timm.layers.resample_abs_pos_embed(made.model.pos_embed, (4, 3), (2, 3))
    torch.testing.assert_close(larger.pos_embed, expected)
    assert larger.forward_intermediates(torch.zeros(1, 3, 56, 42), 1)[1][0].shape == (1, WIDTH, 4, 3)


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_reach_the_projection_and_the_blocks_before_it(shape, images):
    made = student(shape).train()
    made(images, [-1], logits=False).maps[0].square().mean().backward()
    part = "widen" if shape == "wide" else "lift"
    names = {"model.blocks.0.attn.qkv.weight", f"model.blocks.2.{part}.0.weight"}
    assert all(made.get_parameter(name).grad.abs().sum() > 0 for name in names)
    projection = {id(p) for name, p in made.named_parameters() if f".{part}." in name}
    assert projection <= {id(p) for p in block_parameters(made)[-1]}
    assert made.no_weight_decay() == {"model.pos_embed", "model.cls_token"}


@pytest.mark.parametrize("shape", ["lift", "wide"])
def test_no_weight_is_kept_that_nothing_reads(shape, images):
    made = student(shape).train()
    made(images).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in made.parameters())


def test_new_parts_begin_as_timms_do():
    torch.manual_seed(0)
    made = Lift(DEIT, 384).model
    for weight in (made.blocks[-1].lift[0].weight, made.head.weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert not made.head.bias.any()


def test_timms_weights_of_the_vit_are_where_it_begins(tmp_path):
    plain = timm.create_model(DEIT, **TOKENS)
    torch.save(plain.state_dict(), tmp_path / "vit.pth")
    overlay = {"file": str(tmp_path / "vit.pth"), "num_classes": 5, "input_size": (3, 28, 42)}
    made = Lift(DEIT, WIDTH, pretrained=True, timm_kwargs={**TOKENS, "pretrained_cfg_overlay": overlay})
    assert torch.equal(made.model.blocks[2].mlp.fc1.weight, plain.blocks[2].mlp.fc1.weight)
    assert made.has_weights


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Lift("resnet18", 24), ["resnet18 is no ViT"]),
        (lambda: WideLast("cait_xxs24_224", 24), ["cait_xxs24_224 is no ViT", "deit and vit"]),
        (lambda: WideLast("vit_base_patch16_rpn_224", 24), ["rpn", "plain blocks"]),
        (lambda: Lift("deit_tinny_patch16_224", 24), ["did you mean 'deit_tiny_patch16_224'"]),
        (lambda: Lift(DEIT, 24, timm_kwargs={"width": 32}), ["timm_kwargs has width"]),
        (lambda: Lift(DEIT, 0), ["width is a whole number", "not 0"]),
        (lambda: WideLast(DEIT, 400), ["400", "64 channels", "384 and 448"]),
        (lambda: WideLast(DEIT, 32), ["near are 64"]),
        (lambda: Lift(DEIT, 24, timm_kwargs={"embed_dimm": 16}), ["did you mean 'embed_dim'"]),
        (lambda: Lift("vit_base_patch16_siglip_224", 24), ["pools by attention", "lifted_head: false"]),
        (lambda: Backbone("vit_lift", timm_kwargs={"base": DEIT}), ["width is a whole number", "not None"]),
        (lambda: Backbone("vit_wide_last"), ["base is missing"]),
    ],
)
def test_a_mistake_is_one_line(make, words):
    with pytest.raises(UserError) as error:
        make()
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_no_plain_vit_is_taken_for_one(tmp_path):
    Backbone(DEIT, timm_kwargs=TOKENS).export_folder(tmp_path)
    with pytest.raises(UserError, match=f"is of {DEIT}, and not of vit_lift"):
        Lift(DEIT, WIDTH, checkpoint=tmp_path, timm_kwargs=TOKENS)
    assert isinstance(Backbone(checkpoint=tmp_path).model.head, nn.Linear)
