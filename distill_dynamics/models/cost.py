"""What a model costs: parameters, bytes, floating-point operations, time."""

from __future__ import annotations

import statistics
import time
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from distill_dynamics.models.backbone import Backbone
from distill_dynamics.models.isolated import isolated
from distill_dynamics.models.sharding import is_sharded

RUNS, SECONDS = 5, 0.2
"""Of which a latency is the median: so many, as far as these seconds go; one where a run takes longer."""

MOST_SECONDS = 10.0
"""A batch that would take longer, by the time of one image, is not run."""


def cost(backbone: Backbone, image_size: int) -> dict[str, Any]:
    """Plain values, for run.json; what is not measured is None. The model notices nothing of it.

    parameters; megabytes, 10^6 bytes of its weights as they are; gflop of one image, multiplications and
    additions of products, convolutions and attention, each counted as one (`torch.utils.flop_counter`); ms_1
    and ms_32, milliseconds for 1 and for 32 images without a compiled graph, on the device and with the
    threads that it has now. Of a sharded model there are parameters and megabytes alone.
    """
    weights = backbone.state_dict().values()
    facts: dict[str, Any] = {
        "parameters": sum(parameter.numel() for parameter in backbone.parameters()),
        "megabytes": round(sum(weight.numel() * weight.element_size() for weight in weights) / 1e6, 3),
        **dict.fromkeys(("gflop", "ms_1", "ms_32")),
    }
    if is_sharded(backbone):
        return facts
    weight = next(backbone.parameters())
    images = torch.zeros(32, backbone.input_size[0], image_size, image_size).to(weight.device, weight.dtype)
    with isolated(backbone), suppress(Exception):  # no room for 32 images, for one: a run is worth more
        facts["gflop"] = _gflop(backbone, images[:1])
        facts["ms_1"] = round(1000 * _latency(backbone, images[:1]), 3)
        if 32 * facts["ms_1"] <= 1000 * MOST_SECONDS:
            facts["ms_32"] = round(1000 * _latency(backbone, images), 3)
    return facts


def _gflop(backbone: Backbone, image: Tensor) -> float:
    wanted = [weight for weight in backbone.parameters() if weight.requires_grad]
    backbone.requires_grad_(False)  # the counter fails at a view of one that wants gradients
    try:
        # The fused kernels of attention are not counted on a CPU.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            backbone.model(image)
    finally:
        for weight in wanted:
            weight.requires_grad_()
    return round(counter.get_total_flops() / 1e9, 6)


def _latency(backbone: Backbone, images: Tensor) -> float:
    """Median of the runs after the first; where that takes `SECONDS`, it is the only one."""
    first = _timed(backbone, images)
    runs = min(RUNS, int(SECONDS / first))
    return statistics.median([_timed(backbone, images) for _ in range(runs)] or [first])


def _timed(backbone: Backbone, images: Tensor) -> float:
    began = time.perf_counter()
    backbone.model(images)
    if images.is_cuda:
        torch.cuda.synchronize(images.device)
    return time.perf_counter() - began
