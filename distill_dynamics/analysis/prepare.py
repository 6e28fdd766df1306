"""A model of an analysis, ready to be shown images: built, normalised, tried at the size it will get."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from distill_dynamics.analysis.models import Model, Weights
from distill_dynamics.data.analysis_images import ImageSet
from distill_dynamics.errors import UserError, first_line
from distill_dynamics.models.backbone import Backbone
from distill_dynamics.models.eval_transform import EvalTransform
from distill_dynamics.models.input_size import fixed_size
from distill_dynamics.models.isolated import isolated
from distill_dynamics.text import counted


@dataclass(frozen=True)
class TransformOverrides:
    """Settings in place of a model's or a DataModule's own; None leaves it."""

    image_size: int | None = None
    crop_pct: float | None = None
    interpolation: str | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None


def device_named(name: str) -> torch.device:
    """The device of `--device`. UserError for a GPU where there is none."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"--device {name}: torch finds no GPU here; say cpu")
    return torch.device(name)


def make_backbone(model: Model, weights: Weights, seed: int, overrides: TransformOverrides) -> Backbone:
    """Build and normalise it. UserError for channels or numbers that cannot be."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        backbone = Backbone(model.name, model.pretrained, weights.checkpoint, model.timm_kwargs)
    if len(backbone.mean) not in (1, 3):
        raise UserError(f"{model.name} takes {len(backbone.mean)} channels; images have one (grey) or three")
    for option, values in (("--mean", overrides.mean), ("--std", overrides.std)):
        if values and len(values) not in (1, len(backbone.mean)):
            raise UserError(
                f"{option}: {len(values)} numbers for the {len(backbone.mean)} channels of {model.name}"
            )
    backbone.set_normalisation(overrides.mean or backbone.mean, overrides.std or backbone.std)
    if min(backbone.std) <= 0:
        raise UserError(f"--std: {list(backbone.std)} must be positive")
    return backbone


def eval_transform_of(backbone: Backbone, images: ImageSet, overrides: TransformOverrides) -> EvalTransform:
    """The model's own, that of the images' DataModule before it, the overrides before both."""
    size = None if overrides.image_size is None else (overrides.image_size, overrides.image_size)
    wanted = {"image_size": size, "crop_pct": overrides.crop_pct, "interpolation": overrides.interpolation}
    wanted = {key: value for key, value in wanted.items() if value is not None}
    of_data = images.evaluation
    if fixed_size(backbone) not in (None, of_data.get("image_size")):  # a teacher's, shown images of its size
        of_data = {**of_data, "image_size": backbone.input_size[1:]}
    evaluation = backbone.evaluation._replace(**{**of_data, **wanted})
    if min(evaluation.image_size) < 1 or not 0 < evaluation.crop_pct <= 1:
        raise UserError("--image_size is at least 1, --crop_pct above 0 and at most 1")
    if evaluation.image_size != backbone.input_size[1:]:
        try:
            backbone.check_input(backbone.input_size[0], evaluation.image_size[0])
        except UserError as error:  # it names the settings of fit
            wanted_size, given = backbone.input_size[1], evaluation.image_size[0]
            raise UserError(
                f"{backbone.name} takes {wanted_size} x {wanted_size} images, not {given} x {given}; give "
                f"--image_size {wanted_size}, or the model img_size: {given} in its timm_kwargs"
            ) from error
    return evaluation


def check_size(backbone: Backbone, size: tuple[int, int]) -> None:
    """UserError where one black image of a size that is not the model's own does not go through it."""
    channels, *own = backbone.input_size
    if size == tuple(own):
        return
    try:
        with isolated(backbone):
            backbone(torch.zeros(1, channels, *size), "all", logits=False)
    except Exception as error:  # a kernel larger than the map, a memory too small: each layer has its own
        reason = textwrap.shorten(first_line(error), 160)
        raise UserError(
            f"{backbone.name} takes no images of {size[0]} x {size[1]} here ({reason}); give another "
            f"--image_size, such as its own, {own[0]}"
        ) from error


def introduction(label: str, backbone: Backbone, evaluation: EvalTransform) -> str:
    """One line of who is analysed, and on what images."""
    name = label if label == backbone.name else f"{label}: {backbone.name}"
    count = sum(parameter.numel() for parameter in backbone.parameters()) / 1e6
    weights = "" if backbone.has_weights else ", random weights"
    height, width = evaluation.image_size
    return (
        f"{name}, {count:.2f} M parameters{weights}, {counted(len(backbone.layers), 'layer')}; images of "
        f"{height} x {width}, {evaluation.interpolation}, crop {evaluation.crop_pct:g}"
    )
