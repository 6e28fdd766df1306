"""Cost of `analyze`: CaiT-S24 on photographs, beside the bare forward pass; and its peak memory.

    python tests/benchmarks/bench_analyze.py                       time: minutes
    python tests/benchmarks/bench_analyze.py --memory 320 3200     memory: about 40 minutes on two CPU cores

Time: what `analyze` does with a model, from opening 32 JPEG files to the Profiles, over the bare forward
pass on the same 32 images held in memory; run in turn, A B C A B C, so that a busy machine slows all. At
most 1.15.
Memory: the largest resident set of the whole command, with so many images; equal sizes are the result.
On a machine with other work to do, set OMP_NUM_THREADS=1.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from ratios import compare, seconds

from distill_dynamics.backbone import Backbone
from distill_dynamics.data.analysed import ImageSet, ImageStream
from distill_dynamics.data.transforms import eval_transform
from distill_dynamics.dynamics import profile_ranges

MODEL = "cait_s24_224"
ROUNDS = 5


def write_images(folder: Path, count: int) -> None:
    """JPEG files of 500 x 375 pixels, ImageNet's usual size; smooth noise compresses as photos do."""
    rng = np.random.default_rng(0)
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        coarse.resize((500, 375), Image.Resampling.BICUBIC).save(folder / f"{i:05d}.jpg", quality=90)


def time_ratio(folder: Path) -> None:
    """Print how much longer profiling takes than the forward pass."""
    write_images(folder, 32)
    torch.manual_seed(0)
    backbone = Backbone(MODEL).eval()
    images = ImageSet.of_path(folder)
    stream = ImageStream(
        images.source,
        images.draw(32, seed=0),
        eval_transform(*backbone.evaluation),
        backbone.mean,
        backbone.std,
    )
    (batch,) = stream

    @torch.no_grad()
    def bare() -> None:
        backbone.model(batch)

    @torch.no_grad()
    def bare_in_parts() -> None:
        for part in batch.split(8):
            backbone.model(part)

    def one_range() -> None:
        profile_ranges(backbone, stream, value_ranges=["global"])

    def three_ranges() -> None:
        profile_ranges(backbone, stream, value_ranges=["global", "layer", (-5.0, 5.0)])

    contestants = (bare, bare_in_parts, one_range, three_ranges)
    for warm_up in contestants:
        warm_up()
    rounds = [[seconds(run) for run in contestants] for _ in range(ROUNDS)]
    print(
        f"analyze's profiling / bare forward: {compare(rounds, 2, 0)}, "
        f"with three ranges {compare(rounds, 3, 0)}; / bare forward in parts of 8: {compare(rounds, 2, 1)}, "
        f"with three ranges {compare(rounds, 3, 1)}; "
        f"bare forward {statistics.median(times[0] for times in rounds):.2f} s"
    )


def peak_memory(folder: Path, counts: list[int]) -> None:
    """Print the peak of the command's resident set for each number of images."""
    photos = folder / "photos"
    photos.mkdir()
    write_images(photos, max(counts))
    for count in counts:
        command = [sys.executable, "-m", "distill_dynamics", "analyze", "--model", MODEL]
        command += ["--images", str(photos), "--n-images", str(count), "--out", str(folder / str(count))]
        process = subprocess.Popen([*command, "--num-workers", "0"], stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            sys.exit("analyze failed")
        print(f"{count} images: {usage.ru_maxrss / 1024:.0f} MiB", flush=True)  # Linux counts KiB


def main() -> None:
    """Print the results, and where they were taken."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--memory", nargs="+", type=int, metavar="N", help="measure memory with so many images"
    )
    counts = parser.parse_args().memory
    with tempfile.TemporaryDirectory() as folder:
        if counts:
            peak_memory(Path(folder), counts)
        else:
            time_ratio(Path(folder))
    print(
        f"{platform.machine()}, {torch.get_num_threads()} threads, Python {platform.python_version()}, "
        f"torch {torch.__version__}, timm {timm.__version__}"
    )


if __name__ == "__main__":
    main()
