"""The attention of single blocks, seen while they run.

Letters: B batch, P prefix tokens, N patches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from distill_dynamics.errors import UserError


@contextmanager
def seen_attention(model: nn.Module, name: str, layers: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Gives a dict that has, when the model has run, these modules' attention, [B, heads, P + N, P + N].

    These are the probabilities after the softmax (CaiT's before it mixes the heads a second time). A fused
    kernel never has them: inside, these blocks take the plain form, which is slower, needs B heads (P + N)²
    numbers, and rounds otherwise.

    Raises UserError for a layer without attention over all tokens.
    """
    seen: dict[str, Tensor] = {}
    with ExitStack() as undo:
        for layer in layers:
            attention = _attention(model, name, layer)
            mixes_heads = hasattr(attention, "proj_w")  # CaiT: by a linear map, for which the heads are last
            module = attention.proj_w if mixes_heads else attention.attn_drop
            keep = partial(_keep, seen, layer, mixes_heads)
            undo.callback(module.register_forward_pre_hook(keep).remove)
            if not mixes_heads and getattr(attention, "fused_attn", False):
                attention.fused_attn = False
                undo.callback(setattr, attention, "fused_attn", True)
        yield seen


def _keep(
    seen: dict[str, Tensor], layer: str, heads_last: bool, module: nn.Module, inputs: tuple[Tensor, ...]
) -> None:
    seen[layer] = inputs[0].permute(0, 3, 1, 2) if heads_last else inputs[0]


def patch_to_patch(seen: dict[str, Tensor], name: str, prefix: int, layer: str, output: Tensor) -> Tensor:
    """A layer's attention from patch to patch, [B, heads, N, N], each row brought to the sum 1.

    `output` is the layer's map [B, C, H, W], `prefix` how many tokens stand before its patches. Raises
    UserError where the layer had no attention between all its patches, but one within windows or channels.
    """
    attention, patches = seen.get(layer), output.shape[2] * output.shape[3]
    tokens = {patches, patches + prefix}
    if attention is None or len(attention) != len(output) or {*attention.shape[2:]} - tokens:
        raise UserError(f"{name}: its {layer} has no attention between all patches of an image")
    attention = attention[:, :, -patches:, -patches:]
    return attention / attention.sum(dim=-1, keepdim=True)


def _attention(model: nn.Module, name: str, layer: str) -> Any:
    try:
        attention = model.get_submodule(layer).attn
    except AttributeError:
        attention = None
    # XCiT's is between channels, and has a temperature for each head.
    if not isinstance(getattr(attention, "attn_drop", None), nn.Module) or hasattr(attention, "temperature"):
        raise UserError(f"{name}: its {layer} has no attention that can be read")
    return attention
