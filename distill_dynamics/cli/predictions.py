"""`predict`: the CSV file that it writes."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer

from distill_dynamics.data.batches import IGNORED
from distill_dynamics.data.listing import ENDINGS, images_in
from distill_dynamics.data.module import ImageData
from distill_dynamics.data.sources import FileSource
from distill_dynamics.errors import UserError
from distill_dynamics.files import atomic_write
from distill_dynamics.models.hub import CONFIG, label_names
from distill_dynamics.text import counted
from distill_dynamics.train.distiller import Distiller
from distill_dynamics.train.metrics import datamodule

TOP = 5


def predict(trainer: Trainer, model: Distiller, data: ImageData, config: Any, **given: Any) -> None:
    """Write the student's answer for each validation image, or each of `config.images`.

    `given` are arguments of `Trainer.predict`. UserError for a student that has no answer, and for several
    devices.
    """
    if trainer.world_size > 1:
        raise UserError("predict runs on one device: set --trainer.devices 1")
    if model.student.num_classes == 0:
        raise UserError("predict: the student has no classes, so there is nothing that it would predict")
    if given.get("ckpt_path") is None and not model.student.has_weights:
        raise UserError("predict: the student has no weights: give --ckpt_path best, or last, or a file")
    # The run of the checkpoint may be another than the config's.
    of_run = config.ckpt_path and Path(config.ckpt_path).resolve().parents[1] / "student"
    student = of_run or config.model.student.init_args.checkpoint
    files = take_images(data, config.images, student) if config.images is not None else None
    path = Path(config.predictions)
    # Opened before the work: that must not be lost to a wrong path.
    with written_at_the_end(path) as file:
        rows = PredictionRows(file, files)
        callbacks: Any = trainer.callbacks  # type: ignore[attr-defined]
        callbacks.append(rows)
        trainer.predict(model, datamodule=data, **{**given, "return_predictions": False})
    left_out = len(data.unreadable.lines)
    lacking = f", {counted(left_out, 'image')} left out" if left_out else ""
    print(f"{counted(rows.count, 'prediction')} in {path}{lacking}")


class PredictionRows(Callback):
    """Writes a row an image as they come; `count` says how many there were.

    Of validation images: place, target, prediction and its probability. Of the files of `take_images`: the
    file's name, and the `TOP` most likely classes, each with its probability.
    """

    def __init__(self, file: Any, files: FileSource | None) -> None:
        self.writer, self.files, self.count = csv.writer(file), files, 0

    def on_predict_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Write the header: by now the classes are known."""
        self.names = datamodule(trainer).class_names
        self.top = min(TOP, len(self.names))
        of_files = [f"{what}_{k}" for k in range(1, self.top + 1) for what in ("class", "probability")]
        of_data = ["target", "prediction", "probability"]
        self.writer.writerow(["image", *(of_data if self.files is None else of_files)])

    def on_predict_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, *args: Any) -> None:
        """Write those of a batch of probabilities [B, K] and targets [B]."""
        probabilities, targets = (part[outputs[1] != IGNORED] for part in outputs)
        values, classes = probabilities.float().topk(1 if self.files is None else self.top)
        for target, shares, numbers in zip(targets.tolist(), values.tolist(), classes.tolist(), strict=True):
            answers = [(self.names[k], f"{share:.4f}") for k, share in zip(numbers, shares, strict=True)]
            about = [self.count, self.names[target]] if self.files is None else [self._name(target)]
            self.writer.writerow([*about, *(cell for answer in answers for cell in answer)])
            self.count += 1

    def _name(self, index: int) -> str:
        assert self.files is not None
        return str(self.files.path(index).relative_to(self.files.root))


def take_images(data: ImageData, folder: str, student: str | Path | None) -> FileSource:
    """Have the images in a folder, and in those in it, be what is predicted; a target is an image's place.

    The classes' names are those of the folder `student`, in timm's hub layout, where it is one; else the
    data's. UserError where there is none.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise UserError(f"--images: there is no folder {root}")
    files = sorted(os.path.join(place, name) for place, name in images_in(root, "--images"))
    if not files:
        raise UserError(f"--images: {root} holds no images (known endings: {ENDINGS})")
    names = label_names(Path(student) / CONFIG) if student else []
    if not (names := names or data.find_classes()):
        data.setup("predict")
        names = data.class_names
    data.classes = names
    source = FileSource(root, files, [*range(len(files))], "L" if data.in_chans == 1 else "RGB")
    data.sources["val"] = source
    return source


@contextmanager
def written_at_the_end(path: Path) -> Iterator[Any]:
    """A text file that takes the place of the one at `path` when the block ends, not after an error in it."""
    if path.exists() and not path.is_file():  # a pipe, /dev/stdout
        with _opened(path) as file:
            yield file
        return
    path = path.resolve()  # the file that a link leads to, not the link
    if not path.parent.is_dir():
        raise UserError(f"--predictions: there is no folder {path.parent}")
    with atomic_write(path) as partial, _opened(partial) as file:
        yield file


def _opened(path: Path) -> Any:
    # Names of files are bytes: those that are no UTF-8 are written as they are.
    return path.open("w", newline="", encoding="utf-8", errors="surrogateescape")
