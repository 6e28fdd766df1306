"""What a model gives of what can be read of it: a line where it does not."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn

from distill_dynamics.errors import UserError


def check_blocks(model: Any, name: str) -> None:
    """UserError for a model that is trained on a part of its patches: what its blocks give is no map.

    Where their number happens to divide that of the grid, timm's reshaping mixes patches and channels without
    a word: half of DeiT's 196 patches become a map of 14 x 14 with half the channels.
    """
    drop: Any = getattr(model, "patch_drop", None)
    if getattr(drop, "prob", 0) and drop.training:
        raise UserError(
            f"{name}: timm_kwargs.patch_drop_rate {drop.prob:g} leaves out patches in training, so its "
            "blocks give nothing to compare; set it to 0, or take terms of pooled features or logits"
        )


def check_prefix(model: Any, name: str) -> None:
    """UserError for a model of whose blocks no prefix tokens can be read."""
    if not _prefix_tokens(model):
        raise UserError(f"{name}: its blocks have no prefix tokens that can be read")


def check_class_token(model: Any, name: str) -> None:
    """UserError for a model whose blocks have no class token, which comes before all other prefix tokens."""
    count = _prefix_tokens(model)
    holds_it = getattr(model, "embeds", model)  # a NaFlexViT has its tokens there
    if count and getattr(holds_it, "cls_token", None) is not None:
        return
    others = ", their prefix tokens are registers" if count else ""
    raise UserError(
        f"{name}: its blocks have no class token that can be read{others}; compare pooled features "
        "instead (distill_dynamics.losses.PooledKD, without first, last and pairs)"
    )


def check_pooled(pooled: Tensor, name: str) -> Tensor:
    """Pooled features, [B, D]. UserError for those of a model that pools nothing."""
    if pooled.ndim == 2:
        return pooled
    shape = " x ".join(str(n) for n in pooled.shape[1:])
    raise UserError(
        f"{name}: what a classifier would read of an image is {shape} numbers, and pooled features are one "
        "vector: leave out timm_kwargs.global_pool, or set it to avg or, for a class token, token"
    )


def single_head(model: Any) -> nn.Module | None:
    """The module that makes logits of pooled features; None of a model that has several for them.

    A DeiT with a distillation token has two, a CrossViT one for each branch, a VOLO one for its patches too.
    """
    head = model.get_classifier()
    several = isinstance(head, nn.ModuleList) or getattr(model, "aux_head", None) is not None
    return head if isinstance(head, nn.Module) and not several else None


def _prefix_tokens(model: Any) -> int:
    """How many its blocks have that timm gives."""
    gives = "return_prefix_tokens" in inspect.signature(model.forward_intermediates).parameters
    return int(getattr(model, "num_prefix_tokens", 0)) if gives else 0
