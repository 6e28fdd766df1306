"""Whether one device as a group of ranks runs: DDP over NCCL, with blocks compiled on a GPU."""

import os
from collections.abc import Iterator

import torch.distributed
from here import Here, Row
from trainings import fit, quickstart, sample


def rows(here: Here) -> Iterator[Row]:
    """Three steps beside the same steps without a group."""
    settings = {"max_steps": 3, "limit_val_batches": 0}
    alone = fit(here, quickstart(), sample(batch_size=32), **settings)
    before = dict(os.environ)
    try:
        distiller = quickstart(compile=here.is_gpu)
        grouped = fit(here, distiller, sample(batch_size=32), strategy="ddp", **settings)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        os.environ.clear()
        os.environ.update(before)  # a launcher's, which later trainings would take for their own
    off = max(abs(a / b - 1) for a, b in zip(grouped, alone, strict=True))
    yield Row("losses of three steps, beside those without a group", off, "relative", at_most=1e-3)
