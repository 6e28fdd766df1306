"""How fast batches come: the recipe on JPEG files beside timm's loader, and an epoch's first batch."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from feeds import drawn, ours, timms, write_images
from table import Row, row
from turns import by_turns

BATCH, WORKERS = 32, 4


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
