"""Students that change shape, by class_path: ViTs whose last block is as wide as the teacher's.

Tian et al., "From Per-Image Low-Rank to Encoding Mismatch" (ICML 2026, arXiv 2511.15572): a narrow student
cannot hold what a token of the teacher's last block holds, so its own last map is made as wide. With
SpectralKD or FitNet between the last blocks, CaiT-S24 into DeiT-Tiny rises from 74.86 to 77.53 % (Lift) and
78.23 % (WideLast); both have more parameters. Letters: B batch, N patches, C_s and C_t widths, K classes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from distill_dynamics.errors import UserError
from distill_dynamics.models.backbone import Backbone


class Lift(Backbone):
    """A ViT whose last block's tokens pass a linear map C_s → C_t without bias and a LayerNorm.

    The last block's map and prefix tokens are the lifted ones, for terms, probes and the cache alike; the
    lift is part of the model that is exported. With `lifted_head` the classifier reads the average of the
    lifted patch tokens, as the authors' does: that is a wider head and another pooling at once. What each
    brings can be told apart:

    * `lifted_head: false`: the classifier reads what it read without the lift, and the student is, as a
      classifier, the plain ViT; the lift is a projector.
    * `timm_kwargs: {global_pool: token}`: the classifier reads the lifted class token.
    * a `Backbone` with `timm_kwargs: {global_pool: avg}`: another pooling without a lift.

    Departures from the authors' release (`training/lift`): no weights that nothing reads are kept (the base's
    final norm and head); the linear maps begin as timm's ViTs do (truncated normal, 0.02) and the LayerNorm
    has ViTs' eps, 1e-6. With a distillation token both heads read their own lifted token.

    Args:
        name: timm's name of the ViT, one of its deit and vit models.
        width: C_t, the channels of the teacher's last block.
        lifted_head: whether the classifier reads lifted tokens.
        pretrained: begin with timm's weights for the ViT; the lift and a lifted head are fresh.
        checkpoint: weights of such a student, as for `Backbone`. `Backbone(checkpoint=RUN/student)` needs no
            name, and gives the same model.
        timm_kwargs: keyword arguments of the ViT.
        mean: as for `Backbone`.
        std: likewise.
        crop_pct: likewise.

    Raises:
        UserError: a model that is no such ViT, and what `Backbone` raises.
    """

    def __init__(
        self,
        name: str,
        width: int,
        lifted_head: bool = True,
        pretrained: bool = False,
        checkpoint: str | os.PathLike | None = None,
        timm_kwargs: dict[str, Any] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        crop_pct: float | None = None,
    ) -> None:
        shape = {"base": name, "width": width, "lifted_head": lifted_head}
        kwargs = _with_shape(timm_kwargs, shape)
        super().__init__("vit_lift", pretrained, checkpoint, kwargs, mean, std, crop_pct)


class WideLast(Backbone):
    """A ViT whose last block, final norm and head are C_t wide; its heads have as many channels as before.

    A linear map C_s → C_t without bias and a LayerNorm lead into that block, as in the authors' release
    (`training/widelast`); there the class token begins with a deviation of 0.02, here with timm's 1e-6.

    Args:
        name: timm's name of the ViT, one of its deit and vit models.
        width: C_t, the channels of the teacher's last block; a multiple of those of an attention head.
        pretrained: begin with timm's weights for the ViT, but for the last block, norm and head.
        checkpoint: as for `Lift`.
        timm_kwargs: keyword arguments of the ViT.
        mean: as for `Backbone`.
        std: likewise.
        crop_pct: likewise.

    Raises:
        UserError: a model that is no such ViT, a width that heads do not divide, and what `Backbone` raises.
    """

    def __init__(
        self,
        name: str,
        width: int,
        pretrained: bool = False,
        checkpoint: str | os.PathLike | None = None,
        timm_kwargs: dict[str, Any] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        crop_pct: float | None = None,
    ) -> None:
        kwargs = _with_shape(timm_kwargs, {"base": name, "width": width})
        super().__init__("vit_wide_last", pretrained, checkpoint, kwargs, mean, std, crop_pct)


def _with_shape(timm_kwargs: dict[str, Any] | None, shape: dict[str, Any]) -> dict[str, Any]:
    """All keywords of the architecture. UserError for one of the shape among the ViT's."""
    if both := [key for key in shape if key in (timm_kwargs or {})]:
        raise UserError(f"timm_kwargs has {both[0]}, which is an argument of the student itself")
    return {**(timm_kwargs or {}), **shape}
