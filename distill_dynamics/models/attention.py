"""The attention of single blocks, seen while they run.

Letters: B batch, P prefix tokens, N patches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
    undo: list[Any] = []
    try:
        for layer in layers:
            undo += _watch(_attention(model, name, layer), layer, seen)
        yield seen
    finally:
        for step in reversed(undo):
            step()


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


def _attention(model: nn.Module, name: str, layer: str) -> nn.Module:
    try:
        attention = model.get_submodule(layer).attn
    except AttributeError:
        attention = None
    # XCiT's is between channels, and has a temperature for each head.
    if not isinstance(getattr(attention, "attn_drop", None), nn.Module) or hasattr(attention, "temperature"):
        raise UserError(f"{name}: its {layer} has no attention that can be read")
    assert isinstance(attention, nn.Module)
    return attention


def _watch(attention: Any, layer: str, seen: dict[str, Tensor]) -> list[Any]:
    """Has the probabilities put into `seen`; gives what undoes it."""

    def of_drop(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        seen[layer] = given[0]

    def of_mixing(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        seen[layer] = given[0].permute(0, 3, 1, 2)

    if hasattr(
        attention, "proj_w"
    ):  # CaiT's talking heads: a linear map over the heads, which are last there
        return [attention.proj_w.register_forward_pre_hook(of_mixing).remove]
    handle = attention.attn_drop.register_forward_pre_hook(of_drop)
    if not getattr(attention, "fused_attn", False):
        return [handle.remove]
    attention.fused_attn = False
    return [handle.remove, lambda: setattr(attention, "fused_attn", True)]
