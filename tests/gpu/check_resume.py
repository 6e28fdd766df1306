"""Whether a training that is stopped in the middle of an epoch goes on as if nothing had happened."""

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from here import Here, Row, relative
from trainings import AtStep, quickstart, sample, trainer

from distill_dynamics.signals import STOP, Preempted

BATCHES, STOPPED_AT = 4, 6
"""Of an epoch; and the batch, from 0, before which the signal comes: in the second of two epochs."""


def rows(here: Here) -> Iterator[Row]:
    """Weights at the end, with deterministic algorithms and without."""
    try:
        from distill_dynamics.cluster.preemption import Preemption
    except ImportError as error:
        yield Row(f"left out: {error}"[:66], "left out")
        return
    for deterministic in (True, False):
        off = relative(*_weights(here, Preemption, deterministic=deterministic or "warn"))
        if deterministic:
            yield Row("deterministic: weights of the continued run", off, "relative", at_most=0)
        else:
            yield Row("as by default: weights of the continued run", off, "relative", at_most=1e-3)


def _weights(here: Here, preemption: Any, **settings: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Of a run that was stopped and continued, and of one that was not."""
    settings |= {"max_epochs": 2, "limit_train_batches": BATCHES, "limit_val_batches": 1}
    handlers = {number: signal.getsignal(number) for number in STOP}
    with tempfile.TemporaryDirectory() as folder:
        whole, cut = quickstart(), quickstart()
        trainer(here, run_dir=Path(folder, "whole"), **settings).fit(whole, datamodule=_data())
        stop = AtStep(lambda step: os.kill(os.getpid(), STOP[0]) if step == STOPPED_AT else None)
        try:
            stopped = trainer(here, [stop, preemption()], Path(folder, "cut"), **settings)
            stopped.fit(quickstart(), datamodule=_data())
        except Preempted:
            pass
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        path = Path(folder, "cut", "checkpoints", "preempted.ckpt")
        resumed = trainer(here, run_dir=Path(folder, "cut"), **settings)
        resumed.fit(cut, datamodule=_data(), ckpt_path=path, weights_only=True)  # as the command has it
    torch.use_deterministic_algorithms(False)
    both = [torch.cat([w.detach().cpu().flatten() for w in d.student.parameters()]) for d in (cut, whole)]
    return both[0], both[1]


def _data() -> Any:
    return sample(batch_size=32)
