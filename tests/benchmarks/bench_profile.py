"""Cost of `profile_model` beside the bare forward pass it contains: CaiT-S24, 32 images of 224 px.

    python tests/benchmarks/bench_profile.py

Both are run in turn, A B A B, so that a busy machine slows both; the ratio is the result, at most 1.15.
On a machine with other work to do, set OMP_NUM_THREADS=1: threads that wait for each other are
slowed far more than one alone.
"""

import platform
import statistics
import time
from collections.abc import Callable

import timm
import torch

from distill_dynamics.backbone import Backbone
from distill_dynamics.dynamics import profile_model

ROUNDS = 5


def seconds(function: Callable[[], None]) -> tuple[float, float]:
    """Wall-clock and processor time of one call."""
    wall, processor = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - wall, time.process_time() - processor


def main() -> None:
    """Print one line."""
    torch.manual_seed(0)
    backbone = Backbone("cait_s24_224").eval()
    images = torch.randn(32, 3, 224, 224)

    @torch.no_grad()
    def bare_forward() -> None:
        backbone.model(images)

    def profile() -> None:
        profile_model(backbone, images)

    bare_forward()
    profile()
    rounds = [(seconds(bare_forward), seconds(profile)) for _ in range(ROUNDS)]
    wall, processor = (sorted(b[clock] / a[clock] for a, b in rounds) for clock in (0, 1))
    print(
        f"profile_model / bare forward: {statistics.median(wall):.3f} ({wall[0]:.3f} to {wall[-1]:.3f}) in "
        f"wall-clock time, {statistics.median(processor):.3f} ({processor[0]:.3f} to {processor[-1]:.3f}) in "
        f"processor time; forward {statistics.median(a[0] for a, _ in rounds):.2f} s, "
        f"{platform.machine()}, {torch.get_num_threads()} threads, Python {platform.python_version()}, "
        f"torch {torch.__version__}, timm {timm.__version__}"
    )


if __name__ == "__main__":
    main()
