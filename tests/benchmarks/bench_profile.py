"""Cost of `profile_model` beside the bare forward pass: CaiT-S24, 32 images of 224 px.

    python tests/benchmarks/bench_profile.py

The three are run in turn, A B C A B C, so that a busy machine slows all; the ratios are the result.
Beside the forward pass as a user would write it, all 32 images at once, at most 1.15; below 1 where
memory is slow to be had, because `profile_model` runs a CPU's batch in parts of 8. Beside the
same forward pass in parts of 8: what measuring itself costs.
On a machine with other work to do, set OMP_NUM_THREADS=1: threads that wait for each other are
slowed far more than one alone.
"""

import platform
import statistics

import timm
import torch
from ratios import compare, seconds

from distill_dynamics.backbone import Backbone
from distill_dynamics.dynamics import profile_model

ROUNDS = 5


def main() -> None:
    """Print one line."""
    torch.manual_seed(0)
    backbone = Backbone("cait_s24_224").eval()
    images = torch.randn(32, 3, 224, 224)

    @torch.no_grad()
    def bare() -> None:
        backbone.model(images)

    @torch.no_grad()
    def bare_in_parts() -> None:
        for part in images.split(8):
            backbone.model(part)

    def profile() -> None:
        profile_model(backbone, images)

    contestants = (bare, bare_in_parts, profile)
    for warm_up in contestants:
        warm_up()
    rounds = [[seconds(run) for run in contestants] for _ in range(ROUNDS)]
    print(
        f"profile_model / bare forward: {compare(rounds, 2, 0)}; / bare forward in parts of 8: "
        f"{compare(rounds, 2, 1)}; bare forward {statistics.median(bare for bare, *_ in rounds):.2f} s; "
        f"{platform.machine()}, {torch.get_num_threads()} threads, Python {platform.python_version()}, "
        f"torch {torch.__version__}, timm {timm.__version__}"
    )


if __name__ == "__main__":
    main()
