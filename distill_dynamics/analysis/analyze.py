"""`analyze`: any models on the same images, without training → Profiles, tables, figures.

Letters: N images, L layers.
"""

from __future__ import annotations

import csv
import io
import json
import os
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import torch
from tqdm import tqdm

from distill_dynamics.analysis.models import Model, Weights, file_name, find_weights, labels
from distill_dynamics.data.analysed import ImageSet, ImageStream
from distill_dynamics.data.transforms import eval_transform
from distill_dynamics.dynamics import Profile, profile_ranges
from distill_dynamics.dynamics.profiler import RangeMode
from distill_dynamics.dynamics.signature import (
    bootstrap_interval,
    scalars,
    spectral_flatness,
)
from distill_dynamics.dynamics.statistics import SHOWN
from distill_dynamics.errors import UserError, first_line
from distill_dynamics.files import atomic_write_text
from distill_dynamics.models.backbone import Backbone
from distill_dynamics.models.eval_transform import EvalTransform
from distill_dynamics.models.isolated import isolated
from distill_dynamics.report.page import write_report
from distill_dynamics.report.records import ANALYSIS_SCHEMA, range_name
from distill_dynamics.runs.directory import PACKAGES
from distill_dynamics.tables import aligned, side_intervals, signature_rows, spectrum_rows

UNFINISHED = {"profiles", "table.csv", "curves.csv"}
"""What an analysis that was stopped may have left in its folder."""

Range = RangeMode | tuple[float, float]


@dataclass(frozen=True)
class Told:
    """What is to be done otherwise than a model, or a DataModule, would have it; None leaves it."""

    image_size: int | None = None
    crop_pct: float | None = None
    interpolation: str | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None


@dataclass(frozen=True)
class Curve:
    """One Profile of the analysis: of which model and weights, under which range."""

    label: str
    model: Model
    weights: Weights
    range: str
    profile: Profile
    input: dict[str, Any]
    """How the images were brought to this model: size, crop, normalisation."""

    @property
    def name(self) -> str:
        """Label and place in an evolution."""
        if self.weights.best:
            return f"{self.label}, best"
        return self.label if self.weights.epoch is None else f"{self.label}, epoch {self.weights.epoch}"

    @property
    def path(self) -> str:
        """Where the Profile is, in the folder of the analysis."""
        return f"profiles/{file_name(self.label)}/{self.range}/{self.weights.stem}.npz"

    @property
    def facts(self) -> dict[str, Any]:
        """Its entry in `analysis.json`."""
        return {
            "label": self.label,
            "model": self.model.name,
            "checkpoint": self.weights.checkpoint,
            "pretrained": self.model.pretrained,
            "timm_kwargs": self.model.timm_kwargs,
            "range": self.range,
            "epoch": self.weights.epoch,
            "best": self.weights.best,
            "input": self.input,
            "profile": self.path,
        }


def analyze(
    models: Sequence[Model],
    images: ImageSet,
    out: str | os.PathLike,
    *,
    n_images: int | None = 32,
    seed: int = 0,
    told: Told | None = None,
    value_ranges: Sequence[Range] = ("global",),
    bins: int = 100,
    layers: Sequence[int] | Literal["all"] = "all",
    batch_size: int = 32,
    bootstrap: bool = False,
    device: str = "auto",
    num_workers: int = 0,
    command: str = "",
) -> Path:
    """Profile every model on the same images, and write folder `out`.

    It holds `profiles/<label>/<range>/*.npz`, `table.csv` (what each curve says), `curves.csv` (each curve,
    block by block), `analysis.json` (what was done; written when all those are there), `report.html` and
    `figures/`. Memory does not grow with the number of images, but for a few numbers an image and layer.

    Args:
        models: with labels of their own, or none; see `labels`.
        images: see `ImageSet`. Each model gets them with its own mean, std, size and crop.
        out: a new folder, or an empty one.
        n_images: how many, drawn class-balanced; None takes all.
        seed: of the draw, and of the weights of a model that has none.
        told: settings to be used in place of each model's own.
        value_ranges: ranges of the entropy's bins, measured side by side in the same forward passes.
        bins, layers, batch_size: as for `profile_model`.
        bootstrap: give 95 % bootstrap intervals over images, not standard errors, in the tables.
        device: "auto", or what torch calls it.
        num_workers: processes that prepare images where they make more than one batch.
        command: how this was asked for, for the record.

    Raises:
        UserError: what is wrong with a model, a file, the images or the folder. What can be known before the
            first model is run is found before.
    """
    told = told or Told()
    evolutions = [(model, label, find_weights(model)) for label, model in labels(models).items()]
    jobs = [(model, label, weights) for model, label, found in evolutions for weights in found]
    where = _device(device)
    if batch_size < 1 or num_workers < 0:
        raise UserError("--batch-size is at least 1, --num-workers at least 0")
    if not 0 <= seed < 2**63:
        raise UserError(f"--seed is from 0 to 2^63 - 1, not {seed}")

    def prepare(model: Model, weights: Weights) -> tuple[Backbone, ImageStream, EvalTransform]:
        backbone = _backbone(model, weights, seed, told)
        backbone.resolve_layers(layers)
        evaluation = _evaluation(backbone, images, told)
        _try(backbone, evaluation.image_size)
        stream = ImageStream(
            images.source,
            indices,
            eval_transform(*evaluation, border=backbone.mean),
            backbone.mean,
            backbone.std,
            batch_size=batch_size,
            num_workers=num_workers,
        )
        return backbone.to(where), stream, evaluation

    with _claimed(Path(out)) as folder:
        indices = images.draw(n_images, seed, num_workers)
        if len(evolutions) > 1:  # a mistake in the last model is not to be found hours later
            for model, _, found in evolutions:
                prepare(model, found[0])
        print(f"\n  {len(indices)} images: {images.name}")
        curves: list[Curve] = []
        for model, label, weights in tqdm(jobs, "models", disable=len(jobs) == 1 or None, leave=False):
            backbone, stream, evaluation = prepare(model, weights)
            if not curves or curves[-1].label != label:
                tqdm.write(f"  {_introduction(label, backbone, evaluation)}")
            profiles = profile_ranges(
                backbone,
                stream,
                value_ranges=value_ranges,
                bins=bins,
                layers=layers,
                epoch=weights.epoch,
                probe_indices=indices,
                progress=True,
            )
            given = {**evaluation._asdict(), "mean": backbone.mean, "std": backbone.std}
            for value_range, profile in zip(value_ranges, profiles, strict=True):
                profile.probe_id = stream.probe_id
                curves.append(Curve(label, model, weights, range_name(value_range), profile, given))
                profile.save(folder / curves[-1].path)
        _write_csv(folder / "table.csv", [_table_entry(curve, bootstrap) for curve in curves])
        _write_csv(folder / "curves.csv", [row for curve in curves for row in _blocks(curve, bootstrap)])
        files = images.names(indices)
        record = {
            "schema": ANALYSIS_SCHEMA,
            "command": command,
            "versions": {name: metadata.version(name) for name in PACKAGES},
            "device": str(where),
            "images": {
                "source": images.name,
                "n": len(indices),
                "seed": seed,
                **({"files": files} if files else {"indices": indices.tolist()}),
            },
            "bootstrap": bootstrap,
            "curves": [curve.facts for curve in curves],
        }
        atomic_write_text(folder / "analysis.json", json.dumps(record, indent=1) + "\n")
    print(f"\n{_printed(curves, bootstrap)}\n")
    write_report([folder], folder / "report.html", folder / "figures")
    print(f"  written to {folder}: Profiles, table.csv, curves.csv, figures, report.html\n")
    return folder


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"--device {name}: torch finds no GPU here; say cpu")
    return torch.device(name)


@contextmanager
def _claimed(folder: Path) -> Iterator[Path]:
    """The folder of a new analysis, made now, so that no work is lost to a wrong path.

    Raises UserError where it holds an analysis, or files of another kind.
    """
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    present = {path.name for path in folder.iterdir()}
    if "analysis.json" in present:
        raise UserError(f"--out: {folder} holds an analysis already; choose another folder, or delete it")
    if others := sorted(present - UNFINISHED):
        raise UserError(f"--out: {folder} holds other files ({others[0]}); choose a new folder")
    try:
        yield folder
    finally:
        if new:
            with suppress(OSError):  # it is left where something was written
                folder.rmdir()


def _backbone(model: Model, weights: Weights, seed: int, told: Told) -> Backbone:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        backbone = Backbone(model.name, model.pretrained, weights.checkpoint, model.timm_kwargs)
    if len(backbone.mean) not in (1, 3):
        raise UserError(f"{model.name} takes {len(backbone.mean)} channels; images have one (grey) or three")
    for option, values in (("--mean", told.mean), ("--std", told.std)):
        if values and len(values) not in (1, len(backbone.mean)):
            raise UserError(
                f"{option}: {len(values)} numbers for the {len(backbone.mean)} channels of {model.name}"
            )
    backbone.set_normalisation(told.mean or backbone.mean, told.std or backbone.std)
    if min(backbone.std) <= 0:
        raise UserError(f"--std: {list(backbone.std)} must be positive")
    return backbone


def _evaluation(backbone: Backbone, images: ImageSet, told: Told) -> EvalTransform:
    """The model's own, that of the images' DataModule before it, what the user told before both."""
    size = None if told.image_size is None else (told.image_size, told.image_size)
    wanted = {"image_size": size, "crop_pct": told.crop_pct, "interpolation": told.interpolation}
    wanted = {key: value for key, value in wanted.items() if value is not None}
    evaluation = backbone.evaluation._replace(**{**images.evaluation, **wanted})
    if min(evaluation.image_size) < 1 or not 0 < evaluation.crop_pct <= 1:
        raise UserError("--image-size is at least 1, --crop-pct above 0 and at most 1")
    if evaluation.image_size != backbone.input_size[1:]:
        try:
            backbone.check_input(backbone.input_size[0], evaluation.image_size[0])
        except UserError as error:  # it names the settings of fit
            wanted_size, given = backbone.input_size[1], evaluation.image_size[0]
            raise UserError(
                f"{backbone.name} takes {wanted_size} x {wanted_size} images, not {given} x {given}; give "
                f"--image-size {wanted_size}, or the model img_size: {given} in its timm_kwargs"
            ) from error
    return evaluation


def _try(backbone: Backbone, size: tuple[int, int]) -> None:
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
            f"--image-size, such as its own, {own[0]}"
        ) from error


def _introduction(label: str, backbone: Backbone, evaluation: EvalTransform) -> str:
    name = label if label == backbone.name else f"{label}: {backbone.name}"
    count = sum(parameter.numel() for parameter in backbone.parameters()) / 1e6
    weights = "" if backbone.has_weights else ", random weights"
    height, width = evaluation.image_size
    return (
        f"{name}, {count:.2f} M parameters{weights}, {len(backbone.layers)} layers; images of "
        f"{height} x {width}, {evaluation.interpolation}, crop {evaluation.crop_pct:g}"
    )


def _table_entry(curve: Curve, bootstrap: bool) -> dict[str, Any]:
    """One row of table.csv: what the curve is of, and every scalar that is said of it."""
    facts = ("label", "model", "checkpoint", "epoch", "best", "range")
    entry = {name: curve.facts[name] for name in facts}
    entry |= {"images": len(curve.profile.entropy_images), "bins": curve.profile.bins}
    entry |= scalars(curve.profile)
    if bootstrap:
        for side, (low, high) in zip(("left", "right"), side_intervals(curve.profile), strict=True):
            entry |= {f"depth_{side}_low": low, f"depth_{side}_high": high}
    return entry


def _blocks(curve: Curve, bootstrap: bool) -> Iterator[dict[str, Any]]:
    """Rows of curves.csv: the curve block by block, bits and activation units."""
    profile = curve.profile
    kinds = {"": profile.curve, "_se": profile.curve_se}
    shown = [one for one in SHOWN if one.kind != "pair"]
    columns = {
        **{f"{one.name}{end}": of(one.name) for one in shown for end, of in kinds.items()},
        "flatness": spectral_flatness(profile),
        "clipped": profile.clipped,
    }
    if bootstrap:
        for one in (one for one in SHOWN if one.kind == "images"):
            low, high = bootstrap_interval(profile.curves[one.name])
            columns |= {f"{one.name}_low": low, f"{one.name}_high": high}
    for row, layer in enumerate(profile.layers):
        facts = {name: curve.facts[name] for name in ("label", "epoch", "best", "range")}
        yield {
            **facts,
            "block": profile.blocks[row],
            "layer": layer,
            **{name: c[row] for name, c in columns.items()},
        }


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """Columns as they come; what is not known is left empty."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)))
    writer.writeheader()
    for row in rows:
        writer.writerow({key: "" if value is None or value != value else value for key, value in row.items()})
    atomic_write_text(path, text.getvalue())


def _printed(curves: Sequence[Curve], bootstrap: bool) -> str:
    """What the curves say, for a terminal; the spectra once for each model, as no range concerns them."""
    several = len({curve.range for curve in curves}) > 1
    named = [(f"{curve.name} ({curve.range})" if several else curve.name, curve.profile) for curve in curves]
    errors = ["± standard error over images (of the lowest block: standard deviation over resamples)"]
    if bootstrap:
        errors.append("in brackets 95 % bootstrap intervals over images, at the block lowest on average")
    spectra = spectrum_rows(list({curve.name: curve.profile for curve in curves}.items()))
    lines = [*aligned(signature_rows(named, bootstrap)), *errors, "", *(aligned(spectra) if spectra else [])]
    return "\n".join(f"  {line}".rstrip() for line in lines)
