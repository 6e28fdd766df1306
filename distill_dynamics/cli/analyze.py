"""`analyze`: its options, and what `analysis/` is asked for."""

from __future__ import annotations

import difflib
import os
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from distill_dynamics import data, yaml_text
from distill_dynamics.analysis.analyze import Range, analyze
from distill_dynamics.analysis.models import Model
from distill_dynamics.analysis.prepare import TransformOverrides
from distill_dynamics.cli.checks import import_all, refuse_functions
from distill_dynamics.cli.parser import OneLineParser
from distill_dynamics.cli.tools import tool_parser
from distill_dynamics.data.analysed import ImageSet
from distill_dynamics.data.module import ImageData
from distill_dynamics.dynamics.profiler import RangeMode
from distill_dynamics.errors import UserError


def make_parser() -> OneLineParser:
    """The options."""
    parser = tool_parser(
        "analyze",
        "--model NAME [NAME ...] [--images DIR] --out DIR [--OPTION VALUE ...]",
        "--model cait_s24_224 --pretrained --images photos --out analysis",
    )
    models = parser.add_argument_group(
        "models", "--pretrained, --checkpoint and --timm-kwargs are for models given by name alone."
    )
    models.add_argument(
        "--model",
        type=str | dict,
        nargs="+",
        required=True,
        metavar="NAME",
        help="timm names; or mappings, which have settings of their own: '{name: NAME, checkpoint: FILE, "
        "timm_kwargs: {...}, label: TEXT}'",
    )
    models.add_argument("--pretrained", action="store_true", help="timm's published weights")
    models.add_argument(
        "--checkpoint",
        nargs="+",
        metavar="FILE",
        help="weights of one model: a checkpoint of fit, .safetensors, or a timm-style .pth; several "
        "files, or a pattern such as 'DIR/checkpoint_epoch_*.pth', are its evolution over epochs",
    )
    models.add_argument(
        "--timm-kwargs",
        type=dict,
        default={},
        metavar="MAPPING",
        help="keywords of timm: '{img_size: 32, in_chans: 1}'",
    )

    images = parser.add_argument_group(
        "images",
        "Without --images and --data: the validation images of the packaged sample of Fashion-MNIST.",
    )
    images.add_argument(
        "--images",
        metavar="DIR",
        help="a folder, classes being the folders in which the files lie; or one image file",
    )
    images.add_argument(
        "--data", metavar="CONFIG", help="a config of fit: its DataModule's validation images"
    )
    images.add_argument(
        "--n-images",
        type=int | Literal["all"],
        metavar="N",
        help="how many, drawn class-balanced; or all (default: up to 32)",
    )
    images.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the draw, and of random weights (default: 0)"
    )
    images.add_argument(
        "--skip-unreadable",
        action="store_true",
        help="leave out images that cannot be read, after trying all",
    )

    pixels = parser.add_argument_group(
        "pixels",
        "Without these: as the model's own weights want it; with --data, size and crop are the DataModule's.",
    )
    pixels.add_argument("--image-size", type=int, metavar="N", help="side of the images, pixels")
    pixels.add_argument(
        "--crop-pct", type=float, metavar="X", help="the shorter side is resized to size / X first"
    )
    pixels.add_argument("--interpolation", type=Literal["bilinear", "bicubic", "lanczos", "nearest"])
    pixels.add_argument(
        "--mean", type=float, nargs="+", metavar="X", help="a number a channel, of pixels in 0 to 1"
    )
    pixels.add_argument("--std", type=float, nargs="+", metavar="X", help="likewise")

    measures = parser.add_argument_group("measures")
    measures.add_argument(
        "--value-range",
        type=str | tuple[float, float],
        nargs="+",
        default=["global"],
        metavar="RANGE",
        help="what the entropy's bins span: global (over all layers, the paper's, the default), layer (each "
        "layer's own), scaled (over all layers, divided by their magnitude first) or two numbers LO,HI; "
        "several are measured side by side",
    )
    measures.add_argument("--bins", type=int, default=100, metavar="N", help="of the entropy (default: 100)")
    measures.add_argument(
        "--layers",
        type=int | Literal["all"],
        nargs="+",
        default=["all"],
        metavar="N",
        help="numbers from 1, negative from the end (default: all)",
    )
    measures.add_argument(
        "--bootstrap", action="store_true", help="95 %% bootstrap intervals over images, not standard errors"
    )
    measures.add_argument(
        "--batch-size", type=int, default=32, metavar="N", help="images held at a time (default: 32)"
    )
    measures.add_argument(
        "--device", type=Literal["auto", "cpu", "cuda"], default="auto", help="(default: auto)"
    )
    measures.add_argument(
        "--num-workers",
        type=int,
        metavar="N",
        help="processes that prepare images (default: one a core, up to 4)",
    )

    output = parser.add_argument_group("output")
    output.add_argument(
        "--out",
        required=True,
        metavar="DIR",
        help="a new folder, for Profiles, tables, figures and report.html",
    )
    return parser


def run(settings: Any, command: str) -> None:
    """Analyse; `command` is the command line, for the record."""
    models = [_model(entry, settings) for entry in settings.model]
    if settings.checkpoint and not (len(models) == 1 and isinstance(settings.model[0], str)):
        raise UserError(
            "--checkpoint is for one model given by its name; with several, each has its own: "
            f"--model '{{name: {models[0].name}, checkpoint: FILE}}'"
        )
    if not any(isinstance(entry, str) for entry in settings.model):
        for option, given in (
            ("pretrained", settings.pretrained),
            ("timm-kwargs", settings.timm_kwargs),
        ):
            if given:
                raise UserError(
                    f"--{option} is for models given by name alone; a mapping has its own: "
                    f"--model '{{name: {models[0].name}, {option.replace('-', '_')}: ...}}'"
                )
    images = _images(settings)
    if "all" in settings.layers and len(settings.layers) > 1:
        raise UserError("--layers: give numbers, or all, not both")
    n_images = settings.n_images
    if n_images is None:
        n_images = min(32, len(images.source.targets))
    analyze(
        models,
        images,
        settings.out,
        n_images=None if n_images == "all" else n_images,
        seed=settings.seed,
        overrides=TransformOverrides(
            **{field.name: settings[field.name] for field in fields(TransformOverrides)}
        ),
        value_ranges=list(dict.fromkeys(map(_range, settings.value_range))),
        bins=settings.bins,
        layers="all" if "all" in settings.layers else settings.layers,
        batch_size=settings.batch_size,
        bootstrap=settings.bootstrap,
        device=settings.device,
        num_workers=min(4, os.cpu_count() or 1) if settings.num_workers is None else settings.num_workers,
        command=command,
    )


_MODEL_KEYS: dict[str, tuple[Any, str]] = {
    "name": (str, "text"),
    "pretrained": (bool, "true or false"),
    "checkpoint": ((str, list), "a file or a list of files"),
    "timm_kwargs": (dict, "a mapping"),
    "label": (str, "text"),
}


def _model(entry: str | dict[str, Any], settings: Any) -> Model:
    """A name, for which the options speak, or a mapping of Model's fields, which speaks for itself."""
    if isinstance(entry, str):
        return Model(entry, settings.pretrained, settings.checkpoint, settings.timm_kwargs)
    for key in entry:
        if key not in _MODEL_KEYS:
            close = difflib.get_close_matches(str(key), _MODEL_KEYS, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else f" (known: {', '.join(_MODEL_KEYS)})"
            raise UserError(f"--model: no key {key!r}{hint}")
    for key, value in entry.items():
        kinds, words = _MODEL_KEYS[key]
        if not isinstance(value, kinds):
            raise UserError(f"--model: {key}: expected {words}, not {value!r}")
        if isinstance(value, list) and not all(isinstance(file, str) for file in value):
            raise UserError(f"--model: {key}: expected {words}, not {value!r}")
    if "name" not in entry:
        raise UserError(f"--model: {entry} has no name, that of a timm model")
    return Model(**entry)


def _range(given: str | tuple[float, float]) -> Range:
    modes = get_args(RangeMode)
    if given in modes:
        return given  # type: ignore[return-value]
    limits = given.split(",") if isinstance(given, str) else given
    try:
        low, high = map(float, limits)
    except ValueError:
        close = difflib.get_close_matches(str(given), modes, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise UserError(
            f"--value-range: expected {', '.join(modes)} or two numbers LO,HI, "
            f"not {str(given).strip()!r}{hint}"
        ) from None
    return low, high


def _images(settings: Any) -> ImageSet:
    if settings.images is not None and settings.data is not None:
        raise UserError("give either --images or --data, not both")
    if settings.images is not None:
        return ImageSet.of_path(settings.images, settings.skip_unreadable)
    if settings.data is not None:
        return ImageSet.of_datamodule(_datamodule(settings.data), settings.data, settings.skip_unreadable)
    return ImageSet.of_sample()


def _datamodule(config: str) -> ImageData:
    """The DataModule of a config of `fit`, made as `fit` makes it."""
    path = Path(config).expanduser()
    try:
        content = yaml_text.load(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"--data: {path} cannot be read: {getattr(error, 'strerror', 'no text file')}"
        ) from error
    except yaml.YAMLError as error:
        raise UserError(f"--data: {yaml_text.told(path, error)}") from error
    if not isinstance(content, dict) or "data" not in content:
        raise UserError(f"--data: {path} holds no `data:`, so it is no config of fit")
    import_all(data)
    parser = OneLineParser()
    parser.add_subclass_arguments(ImageData, "data", required=True)
    parser.args = ["--config", str(path)]  # where a mistake is looked up
    parsed = parser.parse_object({"data": content["data"]})
    refuse_functions(parsed)
    return parser.instantiate_classes(parsed).data
