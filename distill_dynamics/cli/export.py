"""`export`: a run's student as files for other programs, and on the Hugging Face hub."""

from __future__ import annotations

import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import huggingface_hub
import torch
from torch import Tensor

from distill_dynamics.cli.datamodule import datamodule_of
from distill_dynamics.data.module import ImageData
from distill_dynamics.dynamics.measures.feature_quality import halves
from distill_dynamics.dynamics.measures.knn import knn_predictions
from distill_dynamics.errors import UserError, first_line
from distill_dynamics.files import atomic_write_folder
from distill_dynamics.models import hub, onnx_files
from distill_dynamics.models.backbone import Backbone
from distill_dynamics.models.normalise import Renormalise
from distill_dynamics.models.weights import completed_epochs
from distill_dynamics.runs.card import metric_at, model_card
from distill_dynamics.runs.scores import OF_CLASSES, OF_FEATURES
from distill_dynamics.text import signed
from distill_dynamics.train.checkpoints import LAST
from distill_dynamics.train.quality import check_labelled

ONNX, INT8 = "model.onnx", "model_int8.onnx"
CALIBRATION_IMAGES = 256


def export(
    run: str,
    *,
    out: str,
    onnx: bool = False,
    int8: bool = False,
    data: str | None = None,
    push_to_hub: str | None = None,
) -> None:
    """Write a run's best student for other programs.

    Args:
        run: a run directory of fit, or a folder in timm's hub layout
        out: a new folder, in timm's hub layout: config.json, model.safetensors, README.md
        onnx: write model.onnx too (opset 18, any number of images), compared with torch's answers before
        int8: and model_int8.onnx; both files are measured on all validation images
        data: a config of fit, for its validation images (default: the run's)
        push_to_hub: upload the folder to the Hugging Face hub as USER/NAME; a new repository is private
    """
    folder = Path(out)
    if folder.exists():
        raise UserError(f"--out: {folder} exists; give a new folder")
    if data is not None and not int8:
        raise UserError("--data is for --int8, which is measured on its images")
    if push_to_hub is not None:
        _check_name(push_to_hub)
    if onnx or int8:
        onnx_files.check_installed()
    source = _source(Path(run))
    if folder.resolve().is_relative_to(source.resolve()):
        raise UserError(f"--out: {folder} is in {source}, which is exported")
    images = _images(Path(run), data) if int8 else None
    with atomic_write_folder(folder) as partial:
        student = _write_folder(source, Path(run), partial)
        lines = _write_onnx(student, partial, images) if onnx or int8 else []
        _add_to_card(partial / "README.md", lines)
    print("\n".join([f"{folder}: {', '.join(sorted(file.name for file in folder.iterdir()))}", *lines]))
    if push_to_hub is not None:
        print(_push(folder, push_to_hub))


def _source(run: Path) -> Path:
    """What holds the student: a folder in timm's hub layout, or a checkpoint."""
    folder, best = run / "student", run / "checkpoints" / "best.ckpt"
    # A run that was continued and killed has the student of its first end in the folder.
    newer = completed_epochs(best) not in (None, completed_epochs(folder))
    places = [best, folder] if newer else [folder, best]
    # Where nothing is validated and the run was killed, its last checkpoint has the student.
    for place in [run, *places, best.with_name("student_best.safetensors"), best.with_name(LAST)]:
        if (place / hub.CONFIG).is_file() or (place.is_file() and place != run):
            return place
    what = "there is no such folder" if not run.is_dir() else "no student is there yet"
    raise UserError(f"{run}: {what}; give a run directory of fit, or a folder in timm's hub layout")


def _images(run: Path, data: str | None) -> ImageData:
    config = data or str(run / "config.yaml")
    if data is None and not Path(config).is_file():
        raise UserError(f"--int8 is measured on validation images: {config} is missing, give --data CONFIG")
    images = datamodule_of(config, "--data")
    images.setup("validate")
    return images


def _write_folder(source: Path, run: Path, folder: Path) -> Backbone:
    student = Backbone(checkpoint=source)
    if source.is_dir():
        # Without the files of an earlier export: they would be of other options.
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns(ONNX, INT8), dirs_exist_ok=True)
        return student
    names: list[str] | None = None
    epoch, top1, chosen_by = completed_epochs(source), student.stated_accuracy, OF_CLASSES[0]
    if student.num_classes == 0 and epoch is not None:
        chosen_by = OF_FEATURES[0]
        top1 = metric_at(run, epoch, chosen_by.metric)
    with suppress(UserError):  # images need not be here
        names = datamodule_of(str(run / "config.yaml"), "--data").find_classes()
    names = names or hub.label_names(run / "student" / hub.CONFIG)  # of an earlier end of the run
    student.export_folder(folder, names, notes={"epoch": epoch, f"val_{chosen_by.name}": top1})
    if epoch is not None and (top1 is not None or student.num_classes == 0 or source.name == LAST):
        (folder / "README.md").write_text(model_card(run, student, epoch, top1), encoding="utf-8")
    return student


def _add_to_card(card: Path, lines: list[str]) -> None:
    """Say this of the ONNX files, in place of what the card of an exported folder says of its own."""
    before = card.read_text(encoding="utf-8") if card.is_file() else ""
    kept = re.sub(rf"\n(?:{ONNX}|{INT8}): .*\n", "", before)
    if text := kept + "".join(f"\n{line}\n" for line in lines):
        card.write_text(text, encoding="utf-8")


def _write_onnx(student: Backbone, folder: Path, data: ImageData | None) -> list[str]:
    """Write the files; what is to be said of them, a line each."""
    names = hub.label_names(folder / hub.CONFIG)
    gives, shape = onnx_files.write_onnx(student, folder / ONNX, names)
    channels, (height, width) = student.input_size[0], student.evaluation.image_size
    lines = [
        f"{ONNX}: opset {onnx_files.OPSET}, `images` [batch, {channels}, {height}, {width}] float32, "
        f"normalised, to `{gives}` [batch, {', '.join(map(str, shape))}]; {_megabytes(folder / ONNX)}"
    ]
    if data is None:
        return lines
    title = (OF_CLASSES if student.num_classes else OF_FEATURES)[0].title
    if not student.num_classes:
        _check_labelled(data)
    elif data.num_classes != student.num_classes:
        raise UserError(f"--data has {data.num_classes} classes, and {student.name} {student.num_classes}")
    student.check_input(data.in_chans, data.image_size)
    if (height, width) != (data.image_size, data.image_size):
        raise UserError(f"--data gives images of {data.image_size} px, and {ONNX} takes {height} x {width}")
    if names and names != data.class_names:
        warnings.warn(
            f"--data has other names of classes, {', '.join(data.class_names[:3])} ..., than {student.name}, "
            f"{', '.join(names[:3])} ...: the accuracy is right only if their order is the same",
            stacklevel=2,
        )
    how = onnx_files.write_int8(folder / ONNX, folder / INT8, _calibration(data, student))
    (full, small), count = _accuracies(data, student, [folder / ONNX, folder / INT8])
    lines[0] += f"; {title} {full:.2f} %"
    return [
        *lines,
        f"{INT8}: {how}; {_megabytes(folder / INT8)}; {title} {small:.2f} % ({signed(small - full)} points), "
        f"on {count} validation images{'' if student.num_classes else ', which the other half classifies'}",
    ]


def _calibration(data: ImageData, student: Backbone) -> Iterator[Tensor]:
    """Training images in evaluation form; loaded where they are asked for alone."""
    data.setup("fit")
    count = min(CALIBRATION_IMAGES, len(data.sources["train"].targets))
    yield from data.probe_set(count, 0, "train").normalised(student.mean, student.std).split(32)


def _accuracies(data: ImageData, student: Backbone, paths: list[Path]) -> tuple[list[float], int]:
    """Top-1 of each file on the validation images, percent, and how many those are.

    Of features it is that of kNN, where one half of the images is the bank.
    """
    renormalise = Renormalise(data.mean, data.std, student.mean, student.std)
    answers = [onnx_files.answers_of(path) for path in paths]
    found: list[list[Tensor]] = [[] for _ in paths]
    labels = []
    for images, targets, *_ in data.val_dataloader():
        given = renormalise(images)
        for kept, answer in zip(found, answers, strict=True):
            kept.append(answer(given).argmax(1) if student.num_classes else answer(given).flatten(1))
        labels.append(targets)
    known, all_of = torch.cat(labels), [torch.cat(kept) for kept in found]
    if not student.num_classes:
        bank = halves(known)
        all_of = [knn_predictions(x[bank], known[bank], x[~bank]) for x in all_of]
        known = known[~bank]
    return [100 * (classes == known).double().mean().item() for classes in all_of], len(known)


def _check_labelled(data: ImageData) -> None:
    """UserError where validation images cannot tell how good features are."""
    if not data.val_classes:
        raise UserError(
            "--int8 of a student without classes is measured by kNN on labelled validation images, and here "
            "are none: give --data CONFIG of some, or --onnx in its place"
        )
    check_labelled(data)


def _megabytes(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:.2f} MB"


def _check_name(name: str) -> None:
    try:
        huggingface_hub.utils.validate_repo_id(name)
    except huggingface_hub.errors.HFValidationError as error:
        raise UserError(f"--push_to_hub: {first_line(error)}") from error
    if huggingface_hub.get_token() is None:
        raise UserError("--push_to_hub: no token of the hub: run `hf auth login`, or set HF_TOKEN")


def _push(folder: Path, name: str) -> str:
    """Upload, and give the address. UserError where the hub does not take it; the folder stays."""
    hub_api = huggingface_hub.HfApi()
    try:
        name = hub_api.create_repo(name, private=True, exist_ok=True).repo_id
        hub_api.upload_folder(repo_id=name, folder_path=folder, commit_message="Export of distill_dynamics")
    except Exception as error:  # of the network, the hub, the token: a dozen classes
        raise UserError(
            f"--push_to_hub: {first_line(error)}; {folder} is complete, `hf upload {name} {folder}` sends it"
        ) from error
    return f"{hub_api.endpoint}/{name}"
