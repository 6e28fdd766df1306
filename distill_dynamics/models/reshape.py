"""ViTs whose last block has another width, as architectures that timm builds, saves and loads like its own.

Tian et al., "From Per-Image Low-Rank to Encoding Mismatch" (arXiv 2511.15572), Lift and WideLast. Importing
this module registers `vit_lift` and `vit_wide_last`; timm by itself refuses a file of theirs by name.
Letters: B batch, P prefix tokens, N patches, C_s and C_t the base's and the new width, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import timm.models
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import (
    Block,
    VisionTransformer,
    checkpoint_filter_fn,
    init_weights_vit_timm,
)
from torch import Tensor, nn

from distill_dynamics.errors import UserError
from distill_dynamics.models.create import create

ARCHITECTURES = ("vit_lift", "vit_wide_last")
"""What timm knows once this module is imported."""


class LiftedBlock(Block):
    """A block whose output [B, P + N, C_s] is lifted to C_t."""

    def __init__(self, block: Block, lift: nn.Module) -> None:
        _take_parts(self, block)
        self.lift = lift

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """[B, P + N, C_s] → [B, P + N, C_t]."""
        return self.lift(super().forward(x, attn_mask=attn_mask, is_causal=is_causal))


class WideBlock(Block):
    """A block of C_t channels whose input [B, P + N, C_s] is widened first."""

    def __init__(self, block: Block, widen: nn.Module) -> None:
        _take_parts(self, block)
        self.widen = widen

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """[B, P + N, C_s] → [B, P + N, C_t]."""
        return super().forward(self.widen(x), attn_mask=attn_mask, is_causal=is_causal)


class LiftBeside(VisionTransformer):
    """Its last block's output is lifted where it is read as a map, and not for the classifier."""

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: Literal[False] = False,
        stop_early: bool = False,
        intermediates_only: bool = False,
    ) -> Any:
        """As timm's, [B, C, H, W] maps before the norm."""
        answer = super().forward_intermediates(
            x,
            indices,
            return_prefix_tokens,
            stop_early=stop_early,
            intermediates_only=intermediates_only,
        )
        outputs = answer if intermediates_only else answer[1]
        depth = len(self.blocks)
        if not isinstance(indices, list) or -1 % depth in {i % depth for i in indices}:
            last = outputs[-1]
            lift: Any = self.blocks[-1].lift
            patches = last[0] if isinstance(last, tuple) else last
            lifted = lift(patches.movedim(1, -1)).movedim(-1, 1).contiguous()
            outputs[-1] = (lifted, lift(last[1])) if isinstance(last, tuple) else lifted
        return answer


class DistilledLiftBeside(LiftBeside, VisionTransformerDistilled):
    """The same of a ViT with a distillation token."""


_FAMILY: dict[type, type] = {
    VisionTransformer: LiftBeside,
    VisionTransformerDistilled: DistilledLiftBeside,
}


@timm.models.register_model
def vit_lift(
    pretrained: bool = False,
    *,
    base: Any = None,
    width: Any = None,
    lifted_head: bool = True,
    **options: Any,
) -> VisionTransformer:
    """A ViT of timm's whose last tokens pass Linear(C_s → C_t, no bias) and LayerNorm; see `Lift`."""
    model, loading, kwargs = _base("vit_lift", pretrained, base, width, options)
    block: Any = model.blocks[-1]
    lift = _projection(model.embed_dim, width)
    if not lifted_head:
        block.lift = lift
        model.__class__ = _FAMILY[type(model)]
    elif model.attn_pool is not None:
        raise UserError(f"{base} pools by attention of its own width: set lifted_head: false")
    else:
        model.blocks[-1] = LiftedBlock(block, lift)
        model.norm = model.fc_norm = nn.Identity()
        if "global_pool" not in kwargs and not isinstance(model, VisionTransformerDistilled):
            model.global_pool = "avg"
        for name in ("head", "head_dist"):
            if isinstance(getattr(model, name, None), nn.Linear):
                setattr(model, name, nn.Linear(width, model.num_classes).apply(init_weights_vit_timm))
        model.num_features = model.head_hidden_size = model.embed_dim = width
    return _finished(model, width, loading)


@timm.models.register_model
def vit_wide_last(
    pretrained: bool = False, *, base: Any = None, width: Any = None, **options: Any
) -> VisionTransformer:
    """A ViT of timm's with last block, norm and head of one that is C_t wide; see `WideLast`."""
    model, loading, kwargs = _base("vit_wide_last", pretrained, base, width, options)
    block: Any = model.blocks[-1]
    of_head = model.embed_dim // block.attn.num_heads
    if width % of_head:
        near = sorted({max(1, width // of_head) * of_head, (width // of_head + 1) * of_head})
        raise UserError(
            f"width {width} is no multiple of the {of_head} channels that a head of {base} has; "
            f"near are {' and '.join(map(str, near))}"
        )
    wide = create(base, False, {**kwargs, "embed_dim": width, "num_heads": width // of_head})
    model.blocks[-1] = WideBlock(wide.blocks[-1], _projection(model.embed_dim, width))
    for name in ("norm", "attn_pool", "fc_norm", "head", "head_dist"):
        if hasattr(wide, name):
            setattr(model, name, getattr(wide, name))
    model.num_features = model.head_hidden_size = model.embed_dim = width
    return _finished(model, width, loading)


def _base(name: str, pretrained: bool, base: Any, width: Any, options: dict[str, Any]) -> Any:
    """timm's model, whether weights are to be loaded once it is reshaped, and the keywords of it."""
    if not isinstance(base, str):
        raise UserError(f"{name}: base is missing: timm's name of the ViT that is reshaped")
    if not isinstance(width, int) or isinstance(width, bool) or width < 1:
        raise UserError(f"{name}: width is a whole number of channels above 0, not {width!r}")
    config: Any = options.pop("pretrained_cfg", None)
    options.pop("pretrained_model_args", None)  # what timm read of a folder, and has put into the others
    kwargs = {key: value for key, value in options.items() if value is not None}
    saved = pretrained and isinstance(config, Mapping)
    model = create(base, pretrained and not saved, kwargs)
    blocks: Any = getattr(model, "blocks", [None])
    if type(model) not in _FAMILY or type(blocks[-1]) is not Block:
        raise UserError(
            f"{base} is no ViT whose last block can be another width: timm's deit and vit models can, with "
            "and without a distillation token, of plain blocks"
        )
    model.pretrained_cfg = {
        **(timm.models.PretrainedCfg(**config).to_dict() if saved else model.pretrained_cfg),
        "architecture": name,
    }
    model.default_cfg = model.pretrained_cfg
    return model, saved, kwargs


def _projection(narrow: int, width: int) -> nn.Sequential:
    layers = nn.Linear(narrow, width, bias=False), nn.LayerNorm(width, eps=1e-6)
    return nn.Sequential(*layers).apply(init_weights_vit_timm)


def _take_parts(block: Block, of: Block) -> None:
    """Make a block of another's modules: all that timm's `Block` has."""
    nn.Module.__init__(block)
    for name, part in of.named_children():
        block.add_module(name, part)


def _finished(model: Any, width: int, saved: bool) -> Any:
    model.feature_info[-1]["num_chs"] = width
    if saved:
        timm.models.load_pretrained(
            model, model.pretrained_cfg, model.num_classes, model.in_chans, checkpoint_filter_fn
        )
    return model
