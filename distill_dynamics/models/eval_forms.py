"""timm's modules in forms that take less time and memory where no gradients are recorded.

They hold the same weights under the same names and compute the same. In float32 on a CPU every bit is timm's,
but for CaiT's attention, where that depends on the BLAS library: it mixes heads in products of another shape.
MKL gives timm's bits with AVX-512, and with AVX2 numbers that differ by 3e-7 of the largest.
Letters: B batch, h heads, N tokens, C channels.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from timm.layers import GELU, DropPath, Mlp
from timm.models.cait import LayerScaleBlock, TalkingHeadAttn
from torch import Tensor, nn

PART = 4 * 2**20
"""Bytes of the attention that a CPU works on at once: its steps find it in the processor's cache."""

_NAIVE = 400
"""Below so many multiplications torch's own loop computes a batched product, and not the BLAS library, whose
last bit differs (`bmm_out_or_baddbmm_` in ATen's LinearAlgebra.cpp)."""

_GELUS = (nn.GELU, GELU)
_LINEAR = (nn.Linear,)
_PRODUCTS = (nn.Linear, nn.Conv2d)
_NOTHING = (nn.Identity, nn.Dropout, DropPath)
"""What hands on its input in evaluation."""


def use_eval_forms(model: nn.Module) -> None:
    """Put them in, in place.

    With gradients, in training mode, in a trace for TorchScript, and where a part has a hook or another kind
    of module has taken its place (a layer in 8 bits, another activation), they run as timm's.
    """
    for module in model.modules():
        if type(module) is TalkingHeadAttn:
            module.__class__ = EvalTalkingHeads
        elif type(module) is LayerScaleBlock:
            module.__class__ = EvalLayerScaleBlock
        elif type(module) is Mlp:
            module.__class__ = EvalMlp


def _records(module: nn.Module) -> bool:
    """Whether what is computed may be wanted again: for gradients, or as a graph for any batch."""
    return module.training or torch.is_grad_enabled() or torch.jit.is_tracing()


def _are(types: tuple[type, ...], *parts: nn.Module) -> bool:
    """Whether parts are of these types, in evaluation, and no hook sees what they are given and give.

    Some libraries' hook is a `forward` that they put into a module's place (accelerate's offloading).
    """
    return all(
        type(part) in types
        and not (part.training or part._forward_hooks or part._forward_pre_hooks or "forward" in vars(part))
        for part in parts
    )


def _as_timms(module: nn.Module) -> nn.Module:
    """The same parts and weights in timm's class, whose `forward` TorchScript can read."""
    plain: Any = copy.copy(module)
    plain.__class__ = type(module).__base__
    return plain


class EvalTalkingHeads(TalkingHeadAttn):
    """CaiT's attention (Touvron et al. 2021, Section 4): mixes heads where they lie, a few images at once.

    timm moves the heads last and back for each of the two mixings, which copies the largest tensor of the
    model four times.
    """

    __prepare_scriptable__ = _as_timms

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, C] to [B, N, C]."""
        B, N, C = x.shape
        h = self.num_heads
        as_made = _are(_LINEAR, self.proj_l, self.proj_w) and _are(_NOTHING, self.attn_drop, self.proj_drop)
        if _records(self) or not as_made or N * h * h < _NAIVE or x.is_meta:
            return super().forward(x)
        q, k, v = self.qkv(x).view(B, N, 3, h, C // h).permute(2, 0, 3, 1, 4)
        q, k = q * self.scale, k.transpose(-2, -1)
        at_once = max(1, PART // (h * N * N * q.element_size()))
        if x.device.type != "cpu" or torch.compiler.is_compiling() or at_once >= B:
            answer = self._attend(q, k, v)
        else:
            parts = zip(*(t.split(at_once) for t in (q, k, v)), strict=True)
            answer = torch.cat([self._attend(*part) for part in parts])
        return self.proj(answer.transpose(1, 2).flatten(2))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with torch.autocast(q.device.type, enabled=False):
            scores = q @ k
            if scores.device.type == "cpu" and scores.element_size() < 4:
                scores = scores.float()  # a CPU's products of so few rows are slower in half precision
            attention = _mix_heads(self.proj_l, scores).softmax(dim=-1)
            return _mix_heads(self.proj_w, attention).to(v.dtype) @ v


def _mix_heads(linear: nn.Linear, attention: Tensor) -> Tensor:
    """[B, h, N, N], as `linear` over the heads moved last gives it."""
    weight = linear.weight.to(attention.dtype).expand(attention.shape[0], -1, -1)
    mixed = torch.bmm(weight, attention.flatten(2)).add_(linear.bias.to(attention.dtype)[:, None])
    return mixed.view_as(attention)


class EvalLayerScaleBlock(LayerScaleBlock):
    """CaiT's block, whose sums are written over their second summand."""

    __prepare_scriptable__ = _as_timms

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, C] to [B, N, C]."""
        attn, mlp = self.attn, self.mlp
        as_made = _are((EvalTalkingHeads,), attn) and _are((EvalMlp,), mlp) and _are(_NOTHING, self.drop_path)
        # And what makes the summands that are written over.
        as_made = as_made and _are(_PRODUCTS, attn.proj, mlp.fc2)
        if _records(self) or not as_made or not _are(_NOTHING, attn.proj_drop, mlp.drop2):
            return super().forward(x)
        x = _add_scaled(x, self.gamma_1, attn(self.norm1(x)))
        return _add_scaled(x, self.gamma_2, mlp(self.norm2(x)))


def _add_scaled(x: Tensor, scale: Tensor, change: Tensor) -> Tensor:
    if not change.dtype == scale.dtype == x.dtype:  # under autocast
        return x + scale * change
    return change.mul_(scale).add_(x)


class EvalMlp(Mlp):
    """Its GELU is written over its input."""

    __prepare_scriptable__ = _as_timms

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] to [..., C]."""
        as_made = _are(_PRODUCTS, self.fc1) and _are(_GELUS, self.act)
        if _records(self) or not as_made or not _are(_NOTHING, self.drop1, self.norm, self.drop2):
            return super().forward(x)
        approximate = getattr(self.act, "approximate", "none")  # timm's own class has no other
        return self.fc2(torch.ops.aten.gelu_(self.fc1(x), approximate=approximate))
