"""How fast batches come: the recipe on JPEG files beside timm's loader, and an epoch's first batch."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from bench_data import drawn, write_images
from table import Row, row
from timm.data import ImageDataset, create_loader
from turns import by_turns

from distill_dynamics.data import ImageFolder
from distill_dynamics.data.image_folder import RECIPE

BATCH, WORKERS = 32, 4


def timms(folder: Path, batch: int, workers: int) -> object:
    """timm's loader as its training script makes it: bytes from the workers, normalised and erased after."""
    return create_loader(
        ImageDataset(str(folder / "train")),
        (3, 224, 224),
        batch,
        is_training=True,
        interpolation="bicubic",
        num_workers=workers,
        device=torch.device("cpu"),
        persistent_workers=workers > 0,
        **RECIPE,
    )


def ours(folder: Path, batch: int, workers: int) -> object:
    """The same files and transforms."""
    data = ImageFolder(str(folder), batch_size=batch, num_workers=workers, seed=0)
    data.setup("fit")
    return data.train_dataloader()


def edges(loader: object) -> tuple[float, float]:
    """Seconds until an epoch's first batch, and between two batches in its middle."""
    began = time.perf_counter()
    clock = []
    for _ in loader:  # type: ignore[attr-defined]
        clock.append(time.perf_counter())
    return clock[0] - began, (clock[-2] - clock[0]) / (len(clock) - 2)


def rows(small: bool) -> Iterator[Row]:
    """Images lie in the system's cache: no disk is measured."""
    torch.set_num_threads(1)
    count, rounds = (64, 2) if small else (256, 7)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_images(folder, 500, 375, count)
        for workers in (0, 1):
            pair = [drawn(make(folder, BATCH, workers)) for make in (ours, timms)]
            us, timm = ([count / seconds for seconds in times] for times in by_turns(pair, rounds))
            what = f"recipe, 500 x 375 JPEG, {workers or 'no'} worker: images/s ÷ timm's loader"
            yield row(what, us, timm, 1.3, at_least=True, unit="images/s")
        loader = ours(folder, count // 8, WORKERS)
        for _ in loader:  # type: ignore[attr-defined]
            pass  # workers persist: starting them is no part of an epoch
        first, middle = zip(*(edges(loader) for _ in range(rounds)), strict=True)
        yield row(f"first batch of an epoch ÷ one in its middle, {WORKERS} workers", first, middle, 3.0)
