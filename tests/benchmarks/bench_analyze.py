"""What `analyze` costs beside the forward pass; and, by itself, its peak memory.

python tests/benchmarks/bench_analyze.py 320 3200     memory with so many images; half an hour on two cores
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from table import Row, row
from turns import by_turns

from distill_dynamics.data.analysis_images import ImageSet, ImageStream
from distill_dynamics.data.transforms import eval_transform
from distill_dynamics.dynamics import profile_ranges
from distill_dynamics.models.backbone import Backbone


def write_images(folder: Path, count: int) -> None:
    """JPEG files of 500 x 375 pixels, ImageNet's usual size; smooth noise compresses as photos do."""
    rng = np.random.default_rng(0)
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        coarse.resize((500, 375), Image.Resampling.BICUBIC).save(folder / f"{i:05d}.jpg", quality=90)


def rows(small: bool) -> Iterator[Row]:
    """From opening 32 JPEG files to the Profiles ÷ the forward pass on the same images held in memory."""
    name, count, rounds = ("deit_tiny_patch16_224", 2, 2) if small else ("cait_s24_224", 32, 7)
    torch.manual_seed(0)
    backbone = Backbone(name).eval()
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder), count)
        images = ImageSet.of_path(Path(folder))
        stream = ImageStream(
            images.source,
            images.draw(count, seed=0),
            eval_transform(*backbone.evaluation),
            backbone.mean,
            backbone.std,
        )
        (batch,) = stream
        model = timm.create_model(name).eval()

        @torch.no_grad()
        def bare() -> None:
            model(batch)

        @torch.no_grad()
        def bare_in_parts() -> None:
            for part in batch.split(8):
                model(part)

        def one_range() -> None:
            profile_ranges(backbone, stream, value_ranges=["global"])

        def three_ranges() -> None:
            profile_ranges(backbone, stream, value_ranges=["global", "layer", (-5.0, 5.0)])

        whole, parts, one, three = by_turns([bare, bare_in_parts, one_range, three_ranges], rounds)
    what = f"{name}: analyze of {count} JPEG files ÷ timm's forward"
    yield row(what, one, whole, 1.15, unit="s")
    yield row(f"{what} in parts of 8 images, as analyze has it", one, parts, unit="s")
    yield row(f"{what} in parts of 8, with three value ranges", three, parts, unit="s")


def peak_memory(folder: Path, counts: list[int]) -> None:
    """Print the peak of the command's resident set for each number of images.

    The bins' range is given, so that the images are gone through once; a second time holds nothing more.
    """
    photos = folder / "photos"
    photos.mkdir()
    write_images(photos, max(counts))
    for count in counts:
        command = [sys.executable, "-m", "distill_dynamics", "analyze", "--model", "cait_s24_224"]
        command += ["--images", str(photos), "--n_images", str(count), "--out", str(folder / str(count))]
        command += ["--num_workers", "0", "--value_range", "-20,20"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            sys.exit("analyze failed")
        print(f"{count} images: {usage.ru_maxrss / 1024:.0f} MiB", flush=True)  # Linux counts KiB


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        peak_memory(Path(place), [int(number) for number in sys.argv[1:]])
