"""One training step, by this tool, by hand, by timm's distillation task and by torchdistill.

Batches from memory, the same models, losses and rates; each as its documentation has it used. Student and
teacher have the same normalisation.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import timm
import torch
import torch.nn.functional as F
import yaml
from timm.optim import create_optimizer_v2
from timm.task import LogitDistillationTask
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from turns import Pause

from distill_dynamics.cli.main import main
from distill_dynamics.data import ImageData
from distill_dynamics.data.keyed import Key
from distill_dynamics.data.sources import ArraySource
from distill_dynamics.losses import SoftKD, SpectralKD

ALPHA, SMOOTHING, BETA, LR, DECAY = 0.9, 0.1, 0.2, 1e-4, 0.05


@dataclass(frozen=True)
class Size:
    """Two models and a batch for them."""

    student: str
    teacher: str
    image_size: int
    batch: int
    in_chans: int = 3
    classes: int = 1000
    student_kwargs: dict[str, Any] = field(default_factory=dict)
    teacher_kwargs: dict[str, Any] = field(default_factory=dict)
    steps: int = 1
    rounds: int = 25
    threads: int | None = None

    def turns(self, small: bool) -> dict[str, Any]:
        """How `take_turns` is to have it."""
        return {
            "steps": 2 if small else self.steps,
            "rounds": 2 if small else self.rounds,
            "threads": self.threads,
        }

    def told(self, name: str) -> str:
        """`name`, and what is not the machine's own about how it is timed."""
        return name if self.threads is None else f"{name}, {self.threads} thread"

    def models(self) -> tuple[nn.Module, nn.Module]:
        """Student and teacher, as timm makes them, with random weights."""
        torch.manual_seed(0)
        student = timm.create_model(self.student, **self.student_kwargs)
        teacher = timm.create_model(self.teacher, **self.teacher_kwargs)
        return student.train(), teacher.eval().requires_grad_(False)

    def batches(self, number: int = 4) -> list[tuple[Tensor, Tensor]]:
        """A few batches, for a loop without an end."""
        generator = torch.Generator().manual_seed(0)
        shape = (self.batch, self.in_chans, self.image_size, self.image_size)
        return [
            (
                torch.randn(shape, generator=generator),
                torch.randint(self.classes, (self.batch,), generator=generator),
            )
            for _ in range(number)
        ]


_VIT = {"img_size": 28, "patch_size": 7, "in_chans": 1, "num_classes": 10}
SIZES = {
    "CaiT-S24 → DeiT-Ti": Size("deit_tiny_patch16_224", "cait_s24_224", image_size=224, batch=16),
    "Fashion-MNIST size": Size(
        "deit_tiny_patch16_224",
        "cait_xxs24_224",
        image_size=28,
        batch=128,
        in_chans=1,
        classes=10,
        student_kwargs={**_VIT, "embed_dim": 32, "depth": 12, "num_heads": 2},
        teacher_kwargs={**_VIT, "embed_dim": 64, "depth": 12, "num_heads": 4, "init_values": 0.1},
        steps=10,
        rounds=40,
        threads=1,  # a second one gains nothing at this size
    ),
}


def _endless(batches: list[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        yield from batches


# --- others -------------------------------------------------------------------------------------------


def by_hand(pause: Pause, size: Size) -> None:
    """SoftKD and SpectralKD on the first and the last block, in a loop as one would write it."""
    student, teacher = size.models()
    optimizer = torch.optim.AdamW(student.parameters(), lr=LR, weight_decay=DECAY, fused=True)
    soft_kd, spectral_kd = SoftKD(), SpectralKD()
    last, teachers_last = len(student.blocks) - 1, len(teacher.blocks) - 1
    for images, targets in _endless(size.batches()):
        pause()
        with torch.no_grad():
            final, teacher_maps = teacher.forward_intermediates(
                images, indices=[0, teachers_last], norm=False
            )
            teacher_logits = teacher.forward_head(final)
        final, maps = student.forward_intermediates(images, indices=[0, last], norm=False)
        logits = student.forward_head(final)
        loss = (1 - ALPHA) * F.cross_entropy(logits, targets, label_smoothing=SMOOTHING)
        loss = loss + ALPHA * soft_kd(logits, teacher_logits)
        spectral = [spectral_kd(one, other) for one, other in zip(maps, teacher_maps, strict=True)]
        loss = loss + BETA * sum(spectral) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def timm_task(pause: Pause, size: Size) -> None:
    """SoftKD by `timm.task`, with timm's loop and optimiser."""
    student, teacher = size.models()
    task = LogitDistillationTask(
        student,
        teacher,
        criterion=nn.CrossEntropyLoss(label_smoothing=SMOOTHING),
        task_loss_weight=1 - ALPHA,
        distill_loss_weight=ALPHA,
        verbose=False,
    )
    task.train()
    optimizer = create_optimizer_v2(task.trainable_module, "adamw", lr=LR, weight_decay=DECAY)
    for images, targets in _endless(size.batches()):
        pause()
        loss = task(images, targets)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


class _Repeated(Dataset[tuple[Tensor, Tensor]]):
    """Whole batches, over and over."""

    def __init__(self, batches: list[tuple[Tensor, Tensor]]):
        self.batches = batches

    def __len__(self) -> int:
        return 10**6

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.batches[index % len(self.batches)]


def torchdistill(pause: Pause, size: Size) -> None:
    """SoftKD by torchdistill's DistillationBox, configured as its examples are, with their loop."""
    from torchdistill.core.distillation import get_distillation_box

    student, teacher = size.models()
    kd = {
        **{f"{role}_module_path": "." for role in ("student", "teacher")},
        **{f"{role}_module_io": "output" for role in ("student", "teacher")},
        "temperature": 1,
        "alpha": 1 - ALPHA,
        "label_smoothing": SMOOTHING,
    }
    config = {
        "num_epochs": 1,
        "train_data_loader": {
            "dataset_id": "made",
            "requires_supp": False,
            "sampler": {"class_or_func": torch.utils.data.SequentialSampler},
            "kwargs": {"batch_size": None},
        },
        "teacher": {"forward_proc": "forward_batch_only", "requires_grad": False},
        "student": {"forward_proc": "forward_batch_only"},
        "optimizer": {"key": "AdamW", "kwargs": {"lr": LR, "weight_decay": DECAY}},
        "criterion": {
            "key": "WeightedSumLoss",
            "kwargs": {"sub_terms": {"kd": {"criterion": {"key": "KDLoss", "kwargs": kd}, "weight": 1.0}}},
        },
    }
    box = get_distillation_box(
        teacher, student, {"made": _Repeated(size.batches())}, config, torch.device("cpu"), None, False, 1
    )
    box.pre_epoch_process(epoch=0)
    for images, targets in box.train_data_loader:
        pause()
        box.post_forward_process(box.forward_process(images, targets, None))


# --- this tool ----------------------------------------------------------------------------------------


class Made(ImageData):
    """Random images in memory: drawing a batch costs nothing, reading a cache what it costs."""

    classes: list[str]

    def __init__(self, size: str, views: int | None = None, batch_size: int | None = None):
        self.size = SIZES[size]
        self.in_chans = self.size.in_chans
        self.classes = [str(number) for number in range(self.size.classes)]
        student = timm.get_pretrained_cfg(self.size.student)
        super().__init__(
            mean=student.mean[: self.in_chans],
            std=student.std[: self.in_chans],
            image_size=self.size.image_size,
            batch_size=batch_size or self.size.batch,
            augment={"no_aug": True},
            views=views,
        )

    def load(self, split: str) -> ArraySource:
        rng = np.random.default_rng(0)
        side, count = self.image_size, max(4 * self.batch_size, 32)
        pixels = rng.integers(0, 256, (count, side, side, self.in_chans), dtype=np.uint8)
        return ArraySource(pixels[..., 0] if self.in_chans == 1 else pixels, np.arange(count) % 10)

    def train_dataloader(self) -> DataLoader:
        """The batches of `_Repeated`; with a cache, its rows of as many views."""
        drawn = super().train_dataloader().dataset
        return DataLoader(_Kept(drawn, self.batch_size), batch_size=None)


class _Kept(Dataset[tuple[Any, ...]]):
    """Four batches drawn once; only what the teacher's cache says of them is read anew each time."""

    def __init__(self, drawn: Any, batch: int):
        self.drawn = drawn
        self.keys = [[Key(0, 4 * i + n, 0) for i in range(batch)] for n in range(4)]
        batches = [drawn.__getitems__(keys) for keys in self.keys]
        self.batches = [(drawn.normalised(batch), batch.targets) for batch in batches]

    def __len__(self) -> int:
        return 10**6

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        number = index % 4
        answers = self.drawn._extras(self.keys[number])
        return (*self.batches[number], answers) if answers else self.batches[number]


_pause: Pause


class PauseEachStep(pl.Callback):
    """Whatever the Trainer, its callbacks and loggers do lies between two calls."""

    def on_train_batch_start(self, *args: object) -> None:
        _pause()


ENDS = {"first": 1, "last": 1}


def config(size: str, *, teacher: bool = True, term: dict[str, int] | None = None) -> dict[str, Any]:
    """An experiment with the rest as it is by default: progress bar, loggers, checkpoints, preemption."""
    models = SIZES[size]
    model: dict[str, Any] = {
        "student": {"name": models.student, "timm_kwargs": models.student_kwargs},
        "optimizer": {
            "class_path": "torch.optim.AdamW",
            "init_args": {"lr": LR, "weight_decay": DECAY, "fused": True},
        },
        "lr_images": None,
    }
    if teacher:
        model["teacher"] = {"name": models.teacher, "timm_kwargs": models.teacher_kwargs}
    if term:
        spectral = {"class_path": "distill_dynamics.losses.SpectralKD"}
        model["terms"] = {"spectral": {"loss": spectral, "weight": BETA, **term}}
    return {
        "model": model,
        "data": {"class_path": "contestants.Made", "init_args": {"size": size}},
        "trainer": {"max_epochs": 1, "limit_val_batches": 0, "accelerator": "cpu"},
        "probe": {"every_n_epochs": 1000, "n_images": 1},
    }


def this_tool(pause: Pause, settings: dict[str, Any]) -> None:
    """`fit`, the whole command."""
    global _pause
    _pause = pause
    with tempfile.TemporaryDirectory() as folder:
        callback = {"class_path": "contestants.PauseEachStep"}
        settings["trainer"]["callbacks"] = [callback]
        main(["fit", "--config", write(settings, folder), "--runs_dir", folder])


def write(settings: dict[str, Any], folder: str) -> str:
    """The path of a config file with these settings."""
    path = Path(folder, "experiment.yaml")
    path.write_text(yaml.safe_dump(settings))
    return str(path)
