"""Images a second and core through the recipe's training pipeline, and what makes it cheaper.

    python tests/benchmarks/bench_data.py      about 3 minutes on two cores

JPEG files like photographs are made in two sizes, 500 x 375 (ImageNet's usual one) and 1600 x 1200. One
process with one thread then draws batches of 32 views: decoding, random-resized crop to 224, RandAugment,
erasing, normalisation. Files are read from the system's cache: no disk and no network is measured. The
contestants take turns, A B C A B C, so that a busy machine slows all; the ratios are the result. What one
core draws is by the processor's time, and from it follow the cores that a node of eight GPUs needs for 24,000
images a second; with worker processes it is by the wall clock, beside the same by the wall clock.
"""

import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL
import timm
import torch
from feeds import drawn, write_images
from timm.data import IMAGENET_DEFAULT_STD

from distill_dynamics.data import ImageFolder, StreamedImageFolder
from distill_dynamics.data.loading import ImageLoader
from distill_dynamics.data.streaming.convert import convert

SIZES = {"500 x 375": (500, 375, 256), "1600 x 1200": (1600, 1200, 64)}
"""Width, height, and how many files: an even number of batches, as two workers share them out."""
ROUNDS, BATCH = 5, 32
NODE = 24_000
"""Images a second that eight GPUs are to be fed with."""


def spent(draw: Callable[[], object]) -> dict[str, float]:
    """Seconds of one call by the wall clock, and of the processor in this process."""
    wall, processor = time.perf_counter(), time.process_time()
    draw()
    return {"wall": time.perf_counter() - wall, "processor": time.process_time() - processor}


def measure(folder: Path, name: str) -> None:
    """Print the table for one size of files."""
    width, height, count = SIZES[name]
    size = write_images(folder / "raw", width, height, count)
    raw = str(folder / "raw")
    convert(raw, str(folder / "chunks"), num_workers=2)
    convert(raw, str(folder / "256"), size=256, num_workers=2)

    def loader(data: ImageFolder) -> ImageLoader:
        data.setup("fit")
        return data.train_dataloader()

    def folder_loader(num_workers: int = 0, **settings: bool) -> ImageLoader:
        return loader(ImageFolder(raw, batch_size=BATCH, num_workers=num_workers, seed=0, **settings))

    def chunk_loader(name: str, **settings: bool) -> ImageLoader:
        path = str(folder / name)
        return loader(StreamedImageFolder(path, batch_size=BATCH, num_workers=0, seed=0, **settings))

    source = folder_loader().dataset.source
    contestants = {
        "image files": drawn(folder_loader()),
        "decoding alone": lambda: [source.image(index) for index in range(count)],
        "reduced_decode": drawn(folder_loader(reduced_decode=True)),
        "chunks": drawn(chunk_loader("chunks")),
        "chunks, --size 256": drawn(chunk_loader("256")),
        "image files, 1 worker": drawn(folder_loader(1)),
        "image files, 2 workers": drawn(folder_loader(2)),
    }
    for warm_up in contestants.values():
        warm_up()
    rounds = [[spent(draw) for draw in contestants.values()] for _ in range(ROUNDS)]
    print(f"\n{name}, {count} files of {size:.0f} KB: {ROUNDS} rounds")
    print(f"{'':24}{'images/s':>10}   {'rate / that of image files':32}{f'cores for {NODE:,}/s':>20}")
    for place, contestant in enumerate(contestants):
        clock = "wall" if "worker" in contestant else "processor"
        times = [[seconds[clock] for seconds in turns] for turns in rounds]
        rate = count / statistics.median(turns[place] for turns in times)
        whole = clock == "processor" and "alone" not in contestant
        cores = f"{NODE / rate:.0f}" if whole else ""  # the whole pipeline, on one core
        print(f"{contestant:24}{rate:10.0f}   {compare(times, 0, place):32}{cores:>20}", flush=True)
    views = [
        np.concatenate([images for images, _ in folder_loader(reduced_decode=on)]) for on in (False, True)
    ]
    print(
        f"reduced_decode changes a view by {grey_levels(*views):.2f} grey levels (mean absolute difference)"
    )


def compare(rounds: list[list[float]], one: int, other: int) -> str:
    """Median and range of a ratio within rounds."""
    ratios = sorted(times[one] / times[other] for times in rounds)
    return f"{statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})"


def grey_levels(one: np.ndarray, other: np.ndarray) -> float:
    """Mean absolute difference of normalised images [N,3,H,W], in 1/255 of the range."""
    return float((np.abs(one - other).mean(axis=(0, 2, 3)) * np.array(IMAGENET_DEFAULT_STD)).mean() * 255)


def main() -> None:
    """Print the results, and where they were taken."""
    torch.set_num_threads(1)
    for name in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            measure(Path(folder), name)
    print(
        f"\n{platform.machine()}, one thread, Python {platform.python_version()}, torch {torch.__version__}, "
        f"timm {timm.__version__}, Pillow {PIL.__version__}"
    )


if __name__ == "__main__":
    main()
