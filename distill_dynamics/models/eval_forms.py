"""timm's modules in forms that take less time and memory where no gradients are recorded.

They hold the same weights under the same names and compute the same: in float32 on a CPU every bit is timm's.
Letters: B batch, h heads, N tokens, C channels.
"""

from __future__ import annotations

import torch
from timm.layers import GELU, Mlp
from timm.models.cait import LayerScaleBlock, TalkingHeadAttn
from torch import Tensor, nn

PART = 2**20
"""Bytes of the attention that a CPU works on at once: its steps find it in the processor's cache."""

_NAIVE = 400
"""Below so many multiplications torch's own loop computes a batched product, and not the BLAS library, whose
last bit differs (`bmm_out_or_baddbmm_` in ATen's LinearAlgebra.cpp)."""


_GELUS = (nn.GELU, GELU)


def use_eval_forms(model: nn.Module) -> None:
    """Put them in, in place; with gradients, in training mode, and under hooks they run as timm's."""
    for module in model.modules():
        if type(module) is TalkingHeadAttn:
            module.__class__ = EvalTalkingHeads
        elif type(module) is LayerScaleBlock:
            module.__class__ = EvalLayerScaleBlock
        elif type(module) is Mlp and type(module.act) in _GELUS and type(module.norm) is nn.Identity:
            module.__class__ = EvalMlp


def _records(module: nn.Module, *seen: nn.Module) -> bool:
    """Whether gradients may be wanted, or what one of the parts that are left out is given."""
    hooked = any(part._forward_hooks or part._forward_pre_hooks for part in seen)
    return module.training or torch.is_grad_enabled() or hooked


class EvalTalkingHeads(TalkingHeadAttn):
    """CaiT's attention (Touvron et al. 2021, Section 4): mixes heads where they lie, a few images at once.

    timm moves the heads last and back for each of the two mixings, which copies the largest tensor of the
    model four times.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, C] to [B, N, C]."""
        B, N, _ = x.shape
        h = self.num_heads
        if _records(self, self.proj_l, self.proj_w, self.attn_drop, self.proj_drop) or N * h * h < _NAIVE:
            return super().forward(x)
        q, k, v = self.qkv(x).view(B, N, 3, h, -1).permute(2, 0, 3, 1, 4)
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
    weight = linear.weight.to(attention.dtype).expand(len(attention), -1, -1)
    mixed = torch.bmm(weight, attention.flatten(2)).add_(linear.bias.to(attention.dtype)[:, None])
    return mixed.view_as(attention)


class EvalLayerScaleBlock(LayerScaleBlock):
    """CaiT's block, whose sums are written over their second summand."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, C] to [B, N, C]."""
        attn, mlp = self.attn, self.mlp
        if _records(self, attn, attn.proj, attn.proj_drop, mlp, mlp.fc2, mlp.drop2, self.drop_path):
            return super().forward(x)
        x = _add_scaled(x, self.gamma_1, attn(self.norm1(x)))
        return _add_scaled(x, self.gamma_2, mlp(self.norm2(x)))


def _add_scaled(x: Tensor, scale: Tensor, change: Tensor) -> Tensor:
    if change.dtype != x.dtype:  # under autocast
        return x + scale * change
    return change.mul_(scale).add_(x)


class EvalMlp(Mlp):
    """Its GELU is written over its input."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] to [..., C]."""
        if _records(self, self.fc1, self.act, self.drop1, self.norm, self.drop2):
            return super().forward(x)
        approximate = getattr(self.act, "approximate", "none")  # timm's own class has no other
        return self.fc2(torch.ops.aten.gelu_(self.fc1(x), approximate=approximate))
