"""How the cost of a probe grows: its memory must not, with images; its time linearly, with all it measures.

Every measurement is a process of its own, whose peak is the largest resident set that the system saw.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator

from table import Row

WIDTH, DEPTH = 192, 12


def rows(small: bool) -> Iterator[Row]:
    """A ViT of DeiT-Tiny's size, 224 px; what doubles or grows tenfold is the first of the two."""
    few, many, rounds = (2, 4, 1) if small else (32, 3200, 2)
    runs = [(measure(many, DEPTH, WIDTH), measure(few, DEPTH, WIDTH)) for _ in range(rounds)]
    peaks = [[run["MiB"] for run in pair] for pair in runs]
    yield Row(
        f"peak memory of a probe, {many:,} images ÷ {few}",
        [more / less for more, less in peaks],
        1.05,
        note=f"{peaks[0][0]:.0f} ÷ {peaks[0][1]:.0f} MiB",
    )
    if small:
        return
    for what, less, more, factor in (
        ("images, 320 ÷ 32", (32, DEPTH, WIDTH), (320, DEPTH, WIDTH), 10),
        ("layers, 24 ÷ 12", (64, DEPTH, WIDTH), (64, 2 * DEPTH, WIDTH), 2),
        ("channels, 384 ÷ 192", (64, DEPTH, WIDTH), (64, DEPTH, 2 * WIDTH), 2),
    ):
        pairs = [(measure(*more), measure(*less)) for _ in range(3)]
        ratios = [one["seconds"] / other["seconds"] / factor for one, other in pairs]
        yield Row(f"time of the measures over {factor} times the {what}, ÷ {factor}", ratios)


def measure(images: int, depth: int, width: int) -> dict[str, float]:
    """Peak memory of a probe in MiB, and its seconds beyond the forward passes."""
    sizes = [str(number) for number in (images, depth, width)]
    done = subprocess.run([sys.executable, __file__, *sizes], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def main() -> None:
    """The measurement itself, in its own process."""
    import torch

    from distill_dynamics.dynamics import profile_model
    from distill_dynamics.models.backbone import Backbone

    parser = argparse.ArgumentParser()
    for name in ("images", "depth", "width"):
        parser.add_argument(name, type=int)
    sizes = parser.parse_args()
    kwargs = {"depth": sizes.depth, "embed_dim": sizes.width, "num_heads": 3}
    backbone = Backbone("deit_tiny_patch16_224", timm_kwargs=kwargs).eval()
    forward = 0.0
    model = backbone.forward

    def clocked(*args: object, **kwargs: object) -> object:
        nonlocal forward
        began = time.perf_counter()
        found = model(*args, **kwargs)
        forward += time.perf_counter() - began
        return found

    backbone.forward = clocked

    class Batches:
        """Images made when they are asked for, the same each time."""

        drawing = 0.0

        def __iter__(self) -> Iterator[torch.Tensor]:
            generator = torch.Generator().manual_seed(0)
            for first in range(0, sizes.images, 32):
                began = time.perf_counter()
                batch = torch.randn(min(32, sizes.images - first), 3, 224, 224, generator=generator)
                self.drawing += time.perf_counter() - began
                yield batch

    batches = Batches()
    began = time.perf_counter()
    profile_model(backbone, batches)
    seconds = time.perf_counter() - began - forward - batches.drawing
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # Linux counts KiB
    print(json.dumps({"MiB": peak, "seconds": seconds}))


if __name__ == "__main__":
    main()
