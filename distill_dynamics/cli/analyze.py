"""`analyze`: its options, and what `analysis/` is asked for."""

from __future__ import annotations

import os
from typing import Literal, get_args

from jsonargparse.typing import restricted_string_type

from distill_dynamics.analysis import analyze as analysis
from distill_dynamics.analysis.models import Model
from distill_dynamics.analysis.prepare import TransformOverrides
from distill_dynamics.cli.datamodule import datamodule_of
from distill_dynamics.data.analysis_images import ImageSet
from distill_dynamics.dynamics.profiler import RangeMode
from distill_dynamics.errors import UserError, nearest

Name = restricted_string_type("Name", r"^[^{].*$", "a name of timm, not a mapping")


def analyze(
    *,
    model: list[Name | Model],  # type: ignore[valid-type]
    out: str,
    pretrained: bool = False,
    checkpoint: list[str] | None = None,
    timm_kwargs: dict | None = None,
    images: str | None = None,
    data: str | None = None,
    n_images: int | Literal["all"] | None = None,
    seed: int = 0,
    skip_unreadable: bool = False,
    image_size: int | None = None,
    crop_pct: float | None = None,
    interpolation: Literal["bilinear", "bicubic", "lanczos", "nearest"] | None = None,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    value_range: list[str | tuple[float, float]] = ["global"],  # noqa: B006 (read, not written)
    bins: int = 100,
    layers: list[int | Literal["all"]] = ["all"],  # noqa: B006
    student_width: list[int] | None = None,
    knn: str | None = None,
    bootstrap: bool = False,
    batch_size: int = 32,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    num_workers: int | None = None,
    command: str = "",
) -> None:
    """Profile models on the same images.

    Args:
        model: timm names, or mappings with settings of their own: '{name: NAME, checkpoint: FILE,
            timm_kwargs: {...}, label: TEXT}'
        out: a new folder, for Profiles, tables, figures and report.html
        pretrained: timm's published weights, for models given by name alone
        checkpoint: weights of one model given by name alone: a checkpoint of fit, .safetensors, or a
            timm-style .pth; several files, or a pattern such as 'DIR/checkpoint_epoch_*.pth', are its
            evolution over epochs
        timm_kwargs: keywords of timm, '{img_size: 32, in_chans: 1}', for models given by name alone
        images: a folder, classes being the folders in which the files lie, or one image file (without
            --images and --data: the validation images of the packaged sample of Fashion-MNIST)
        data: a config of fit, for its DataModule's validation images, their size and crop
        n_images: how many, drawn class-balanced, or all (default: up to 32)
        seed: seed of the draw, and of random weights
        skip_unreadable: leave out images that cannot be read, after trying all
        image_size: side of the images, pixels; this and the next four are the model's own if left out
        crop_pct: the shorter side is resized to image_size / crop_pct first
        interpolation: of the resizing
        mean: a number a channel, of pixels in 0 to 1
        std: a number a channel, of pixels in 0 to 1
        value_range: what the entropy's bins span: global (all layers, the paper's, the default), layer (each
            layer's own), scaled (all layers, divided by their magnitude first) or two numbers LO,HI; several
            are measured side by side
        bins: bins of the entropy
        layers: numbers from 1, negative from the end (default: all)
        student_width: channels of students, one number or several: how much of each block could they hold?
            As a table, floors.csv and a figure; takes some hundred images
        knn: a folder DIR of labelled images, by which the features are measured: kNN and linear top-1 and
            effective rank, as a table and quality.csv. DIR/train/<class> classifies DIR/val/<class>, or one
            half of DIR/<class> the other. Costs a forward pass of all images and seconds for 10,000
        bootstrap: 95 % bootstrap intervals over images, not standard errors
        batch_size: images held at a time
        device: where the models run
        num_workers: processes that prepare images (default: one a core, up to 4)
        command: the command line, for the record
    """
    models = _models(model, pretrained, checkpoint, timm_kwargs)
    image_set = _images(images, data, skip_unreadable)
    if "all" in layers and len(layers) > 1:
        raise UserError("--layers: give numbers, or all, not both")
    if n_images is None:
        n_images = min(32, len(image_set.source.targets))
    analysis.analyze(
        models,
        image_set,
        out,
        n_images=None if n_images == "all" else n_images,
        seed=seed,
        overrides=TransformOverrides(image_size, crop_pct, interpolation, mean, std),
        value_ranges=list(dict.fromkeys(map(_range, value_range))),
        bins=bins,
        layers="all" if "all" in layers else layers,  # type: ignore[arg-type]
        student_widths=list(dict.fromkeys(student_width or [])),
        knn=knn,
        batch_size=batch_size,
        bootstrap=bootstrap,
        device=device,
        num_workers=min(4, os.cpu_count() or 1) if num_workers is None else num_workers,
        command=command,
    )


def _models(
    entries: list[str | Model], pretrained: bool, checkpoint: list[str] | None, timm_kwargs: dict | None
) -> list[Model]:
    """Names, for which the options speak, and mappings, which speak for themselves."""
    names = [entry for entry in entries if isinstance(entry, str)]
    first = entries[0] if isinstance(entries[0], str) else entries[0].name
    if checkpoint and (len(entries) > 1 or not names):
        raise UserError(
            "--checkpoint is for one model given by its name; with several, each has its own: "
            f"--model '{{name: {first}, checkpoint: FILE}}'"
        )
    for option, given in (("pretrained", pretrained), ("timm_kwargs", timm_kwargs)):
        if given and not names:
            raise UserError(
                f"--{option} is for models given by name alone; a mapping has its own: "
                f"--model '{{name: {first}, {option}: ...}}'"
            )
    return [
        Model(entry, pretrained, checkpoint, timm_kwargs or {}) if isinstance(entry, str) else entry
        for entry in entries
    ]


def _range(given: str | tuple[float, float]) -> analysis.Range:
    modes = get_args(RangeMode)
    if given in modes:
        return given  # type: ignore[return-value]
    limits = given.split(",") if isinstance(given, str) else given
    try:
        low, high = map(float, limits)
    except ValueError:
        raise UserError(
            f"--value_range: expected {', '.join(modes)} or two numbers LO,HI, "
            f"not {str(given).strip()!r}{nearest(str(given), modes, few=0)}"
        ) from None
    return low, high


def _images(images: str | None, config: str | None, skip_unreadable: bool) -> ImageSet:
    if images is not None and config is not None:
        raise UserError("give either --images or --data, not both")
    if images is not None:
        return ImageSet.of_path(images, skip_unreadable)
    if config is not None:
        return ImageSet.of_datamodule(datamodule_of(config, "--data"), config, skip_unreadable)
    return ImageSet.of_sample()
