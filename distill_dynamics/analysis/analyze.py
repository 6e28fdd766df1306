"""`analyze`: any models on the same images, without training → Profiles, tables, figures.

Letters: N images, L layers.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from distill_dynamics.analysis.floors import check_images, check_widths, floor_rows, once, printed_floors
from distill_dynamics.analysis.knn import labelled, printed_quality, quality_of, quality_row
from distill_dynamics.analysis.models import Model, Weights, find_weights, labels
from distill_dynamics.analysis.prepare import (
    TransformOverrides,
    check_size,
    device_named,
    eval_transform_of,
    introduction,
    make_backbone,
)
from distill_dynamics.analysis.tables import Curve, block_rows, printed, table_entry, write_csv
from distill_dynamics.data.analysis_images import ImageSet, ImageStream
from distill_dynamics.data.transforms import eval_transform
from distill_dynamics.dynamics import profile_ranges
from distill_dynamics.dynamics.profiler import RangeMode
from distill_dynamics.errors import UserError
from distill_dynamics.files import atomic_write_text
from distill_dynamics.models.backbone import Backbone
from distill_dynamics.models.eval_transform import EvalTransform
from distill_dynamics.report.page import write_report
from distill_dynamics.report.records import ANALYSIS_SCHEMA, range_name
from distill_dynamics.runs.directory import versions
from distill_dynamics.text import counted

UNFINISHED = {"profiles", "table.csv", "curves.csv", "floors.csv", "quality.csv"}
"""What an analysis that was stopped may have left in its folder."""

Range = RangeMode | tuple[float, float]


def analyze(
    models: Sequence[Model],
    images: ImageSet,
    out: str | os.PathLike,
    *,
    n_images: int | None = 32,
    seed: int = 0,
    overrides: TransformOverrides | None = None,
    value_ranges: Sequence[Range] = ("global",),
    bins: int = 100,
    layers: Sequence[int] | Literal["all"] = "all",
    student_widths: Sequence[int] = (),
    knn: str | os.PathLike | None = None,
    batch_size: int = 32,
    bootstrap: bool = False,
    device: str = "auto",
    num_workers: int = 0,
    command: str = "",
) -> Path:
    """Profile every model on the same images, and write folder `out`.

    It holds `profiles/<label>/<range>/*.npz`, `table.csv` (what each curve says), `curves.csv` (each curve,
    block by block), with widths of students `floors.csv`, with `knn` `quality.csv`, `analysis.json` (what was
    done; written when all those are there), `report.html` and `figures/`. Memory does not grow with the
    number of images, but for a few numbers an image and layer, and with `knn` for the features of its images.

    Args:
        models: with labels of their own, or none; see `labels`.
        images: see `ImageSet`. Each model gets them with its own mean, std, size and crop.
        out: a new folder, or an empty one.
        n_images: how many, drawn class-balanced; None takes all.
        seed: of the draw, and of the weights of a model that has none.
        overrides: settings in place of each model's own.
        value_ranges: ranges of the entropy's bins, measured side by side in the same forward passes.
        bins, layers, batch_size: as for `profile_model`.
        student_widths: channels of students: how much of each block can they hold? The first is that of the
            Profiles with the curves, each further one has a Profile of its own.
        knn: a folder of labelled images, by which features are measured; see `labelled`.
        bootstrap: give 95 % bootstrap intervals over images, not standard errors, in the tables.
        device: "auto", or what torch calls it.
        num_workers: processes that prepare images where they make more than one batch.
        command: how this was asked for, for the record.

    Raises:
        UserError: what is wrong with a model, a file, the images or the folder. What can be known before the
            first model is run is found before.
    """
    overrides = overrides or TransformOverrides()
    evolutions = [(model, label, find_weights(model)) for label, model in labels(models).items()]
    jobs = [(model, label, weights) for model, label, found in evolutions for weights in found]
    where = device_named(device)
    if batch_size < 1 or num_workers < 0:
        raise UserError("--batch_size is at least 1, --num_workers at least 0")
    if not 0 <= seed < 2**63:
        raise UserError(f"--seed is from 0 to 2^63 - 1, not {seed}")

    def prepare(model: Model, weights: Weights) -> tuple[Backbone, ImageStream, EvalTransform]:
        backbone = make_backbone(model, weights, seed, overrides)
        check_widths(student_widths, backbone, backbone.resolve_layers(layers))
        evaluation = eval_transform_of(backbone, images, overrides)
        check_size(backbone, evaluation.image_size)
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
        check_images(student_widths, len(indices))
        asked = None if knn is None else labelled(knn, images.skip_unreadable, num_workers)
        if len(evolutions) > 1:  # a mistake in the last model is not to be found hours later
            for model, _, found in evolutions:
                prepare(model, found[0])
        print(f"\n  {counted(len(indices), 'image')}: {images.name}")
        curves: list[Curve] = []
        for model, label, weights in tqdm(jobs, "models", disable=len(jobs) == 1 or None, leave=False):
            backbone, stream, evaluation = prepare(model, weights)
            if not curves or curves[-1].label != label:
                tqdm.write(f"  {introduction(label, backbone, evaluation)}")
            profiles = profile_ranges(
                backbone,
                stream,
                value_ranges=value_ranges,
                bins=bins,
                layers=layers,
                student_widths=student_widths,
                epoch=weights.epoch,
                probe_indices=indices,
                progress=True,
            )
            given = {**evaluation._asdict(), "mean": backbone.mean, "std": backbone.std}
            quality = {}
            if asked is not None:
                quality = quality_of(backbone, evaluation, asked, batch_size, num_workers)
            count = max(len(student_widths), 1)
            for number, value_range in enumerate(value_ranges):
                profile, *further = profiles[number * count : (number + 1) * count]
                of_range = range_name(value_range)
                curves.append(Curve(label, model, weights, of_range, profile, given, further, quality))
                for path, of_width in curves[-1].files.items():
                    of_width.probe_id = stream.probe_id
                    of_width.save(folder / path)
        write_csv(folder / "table.csv", [table_entry(curve, bootstrap) for curve in curves])
        write_csv(folder / "curves.csv", [row for curve in curves for row in block_rows(curve, bootstrap)])
        if student_widths:
            write_csv(folder / "floors.csv", [row for curve in once(curves) for row in floor_rows(curve)])
        if asked is not None:
            write_csv(folder / "quality.csv", [*map(quality_row, once(curves))])
        files = images.names(indices)
        record = {
            "schema": ANALYSIS_SCHEMA,
            "command": command,
            "versions": versions(),
            "device": str(where),
            "images": {
                "source": images.name,
                "n": len(indices),
                "seed": seed,
                **({"files": files} if files else {"indices": indices.tolist()}),
            },
            **({} if asked is None else {"knn": asked.facts}),
            "bootstrap": bootstrap,
            "curves": [curve.facts for curve in curves],
        }
        atomic_write_text(folder / "analysis.json", json.dumps(record, indent=1) + "\n")
    print(f"\n{printed(curves, bootstrap)}\n")
    if student_widths:
        for curve in once(curves, latest=True):
            print(f"{printed_floors(curve)}\n")
    if asked is not None:
        print(f"{printed_quality({curve.name: curve.quality for curve in once(curves)}, asked)}\n")
    write_report([folder], folder / "report.html", folder / "figures")
    more = "floors.csv, " if student_widths else ""
    more += "" if knn is None else "quality.csv, "
    print(f"  written to {folder}: Profiles, table.csv, curves.csv, {more}figures, report.html\n")
    return folder


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
