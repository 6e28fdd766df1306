"""What is trained in a benchmark: two models, batches from memory, and data that cost nothing to draw."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from distill_dynamics.data import ImageData
from distill_dynamics.data.keyed import Key
from distill_dynamics.data.sources import ArraySource


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
    device: str = "cpu"
    half: bool = False
    """Whether products are in bfloat16, by autocast."""

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
        """Student and teacher on the device, as timm makes them, with random weights."""
        torch.manual_seed(0)
        student = timm.create_model(self.student, **self.student_kwargs)
        teacher = timm.create_model(self.teacher, **self.teacher_kwargs)
        return student.train().to(self.device), teacher.eval().requires_grad_(False).to(self.device)

    def batches(self, number: int = 4) -> list[tuple[Tensor, Tensor]]:
        """A few batches in memory."""
        generator = torch.Generator().manual_seed(0)
        shape = (self.batch, self.in_chans, self.image_size, self.image_size)
        made = [
            (
                torch.randn(shape, generator=generator),
                torch.randint(self.classes, (self.batch,), generator=generator),
            )
            for _ in range(number)
        ]
        return self.pinned(made)

    def pinned(self, batches: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
        """These where a GPU can fetch them by itself, as a loader's are."""
        return batches if self.device == "cpu" else [(x.pin_memory(), y.pin_memory()) for x, y in batches]

    def stream(self) -> Iterator[tuple[Tensor, Tensor]]:
        """These on the device, over and over."""
        for images, targets in cycle(self.batches()):
            yield images.to(self.device, non_blocking=True), targets.to(self.device, non_blocking=True)

    def autocast(self) -> torch.autocast:
        """What the forward pass of both models runs under."""
        return torch.autocast(self.device, torch.bfloat16, enabled=self.half)


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


class Made(ImageData):
    """Random images in memory: drawing a batch costs nothing, reading a cache what it costs."""

    classes: list[str]

    def __init__(self, size: str | Size, views: int | None = None, batch_size: int | None = None):
        self.size = SIZES[size] if isinstance(size, str) else size
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
        """Four batches over and over; with a cache, its rows of as many views."""
        drawn = super().train_dataloader().dataset
        return DataLoader(_Kept(drawn, self.size, self.batch_size), batch_size=None)


class _Kept(Dataset[tuple[Any, ...]]):
    """Four batches drawn once; only what the teacher's cache says of them is read anew each time."""

    def __init__(self, drawn: Any, size: Size, batch: int):
        self.drawn, self.size = drawn, size
        self.keys = [[Key(0, 4 * i + n, 0) for i in range(batch)] for n in range(4)]
        batches = [drawn.__getitems__(keys) for keys in self.keys]
        self.batches = size.pinned([(drawn.normalised(batch), batch.targets) for batch in batches])

    def __len__(self) -> int:
        return 10**6

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        number = index % 4
        answers = self.drawn._extras(self.keys[number])
        if self.size.device != "cpu":
            answers = {name: values.pin_memory() for name, values in answers.items()}
        return (*self.batches[number], answers) if answers else self.batches[number]
