"""What the device can do at most: everything else is read beside this."""

from collections.abc import Iterator

import torch
from here import Here, Row


def rows(here: Here) -> Iterator[Row]:
    """Memory, products, and the way from the host. Limits are those of an H100."""
    yield _copy(here)
    side = 256 if here.small else 8192
    a, b = (torch.randn(side, side, device=here.device, dtype=torch.bfloat16) for _ in range(2))
    taken = here.seconds(lambda: a @ b)
    what = f"product of two {side} × {side} in bfloat16"
    yield Row(what, 2 * side**3 / taken / 1e12, "TFLOP/s", here.of_gpu(650))

    if here.is_gpu:
        batch = torch.empty(8 if here.small else 256, 3, 224, 224).pin_memory()
        there = torch.empty_like(batch, device=here.device)
        taken = here.seconds(lambda: there.copy_(batch, non_blocking=True))
        yield Row("pinned memory to the device", batch.nbytes / taken / 1e9, "GB/s", here.of_gpu(20))


def _copy(here: Here) -> Row:
    source, target = (torch.empty(2**20 if here.small else 2**30, device=here.device) for _ in range(2))
    taken = here.seconds(lambda: target.copy_(source))
    return Row("copy, read and written", 2 * source.nbytes / taken / 1e12, "TB/s", here.of_gpu(2.6))
