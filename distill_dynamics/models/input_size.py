"""Sides of images: what an architecture fixes, what a DataModule draws, what patches divide."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import timm.models

from distill_dynamics.errors import UserError

if TYPE_CHECKING:
    from distill_dynamics.models.backbone import Backbone


def fixed_size(backbone: Backbone) -> tuple[int, int] | None:
    """(height, width) of the images that a model takes; None for one that takes images of any size."""
    fixed = timm.models.get_model_input_config(backbone.model)["fixed_input_size"]
    return backbone.input_size[1:] if fixed else None


def views_side(data: Any) -> int:
    """Of the training views that a DataModule draws; one that is not ours may know `image_size` alone."""
    return getattr(data, "view_size", data.image_size)


def teacher_side(backbone: Backbone, data: Any) -> int:
    """Of the images that a teacher is shown: its own where its architecture fixes that, else the views'."""
    size = fixed_size(backbone)
    return size[0] if size is not None and size[0] == size[1] else views_side(data)


def of_side(data: Any, side: int) -> dict[str, Any]:
    """The argument by which a DataModule of ours makes images of evaluation at a side from its files.

    {} where that is its own side, and for another DataModule, whose images a model has to resize.
    """
    return {"size": side} if hasattr(data, "view_size") and side != data.image_size else {}


def check_patches(backbone: Backbone, side: int) -> None:
    """UserError where patches leave over a margin of images of this side, of which no output would tell.

    Patches that overlap, and models that pad their images, leave over none that is worth a word.
    """
    embed = getattr(backbone.model, "patch_embed", None)
    patch, stride = getattr(embed, "patch_size", None), getattr(getattr(embed, "proj", None), "stride", None)
    if not isinstance(patch, tuple) or stride != patch or getattr(embed, "dynamic_img_pad", False):
        return
    if all(side % length == 0 for length in patch):
        return
    below = side // patch[0] * patch[0]
    fit = " or ".join(str(fitting) for fitting in (below, below + patch[0]) if fitting)
    key = "data.view_size" if fixed_size(backbone) is None else "timm_kwargs.img_size"
    raise UserError(
        f"{backbone.name} takes images of {side} px, which its patches of {patch[0]} px do not divide; "
        f"set {key}: {fit}"
    )
