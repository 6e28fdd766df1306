"""SIGTERM and SIGUSR1: stop between two steps, with a checkpoint that goes on as if nothing had happened."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor

from distill_dynamics.cluster.wandb_end import close_wandb
from distill_dynamics.runs import lease
from distill_dynamics.signals import STOP, Preempted, compilers_ignore_signals
from distill_dynamics.train.checkpoints import PREEMPTED, last_checkpoint
from distill_dynamics.train.distiller import Distiller

EXIT_STATUS = 75
"""EX_TEMPFAIL of sysexits.h, "try again": neither the end of the run, which is 0, nor an error."""

SAME_SIGNAL_S = 5.0
"""Seconds in which a signal that comes again is the same one: launchers pass on what all have got already."""

LAST_UPLOAD_S = 30.0
"""Seconds that W&B has to upload what it holds; what is left then is on disk, for `wandb sync`."""


class Preemption(Checkpoint):
    """On SIGTERM or SIGUSR1 to any rank: all stop after the same step, with `preempted.ckpt` written there.

    A run that is continued from that, in the middle of an epoch, ends as if it had not been stopped: see
    `Distiller.on_save_checkpoint`. The file is removed at the end of that epoch; until then `last.ckpt` is of
    the end of the epoch before. Then run.json and W&B are closed, and every rank exits with status 75 (those
    that Lightning started itself with 0: any other it takes for a crash of theirs).

    It stops after the step in which the signal comes, of several ranks after the next one. A signal in the
    last step of an epoch, in validation or at a probe waits for the epoch to be saved; one before the first
    step waits for the teacher to be measured, one in a step that compiles waits for that; one after the last
    epoch changes nothing. A signal that comes more than 5 s after the first ends the process at once, unless
    the checkpoint is written.

    Ranks agree over a process group of their own, on the CPU: each posts at the end of a step whether it was
    asked to stop, and reads the answer at the end of the next: no rank waits. (Lightning's own handler
    and its broadcast before every batch, for which the device has to finish its work, are switched off here,
    as is its requeuing of SLURM jobs.)

    It is a `Checkpoint` so that Lightning calls it after all other callbacks: what they change at the end of
    a step, an average of weights for one, is then in the checkpoint.
    """

    def __init__(self) -> None:
        self._asked_at: float | None = None  # when the first signal came
        self._agreed = False  # all ranks know of it
        self._saved = False
        self._step = 0
        self._group: Any = None
        self._posted: tuple[Tensor, Any] | None = None
        self._before: dict[int, Any] = {}
        self._compilers = ExitStack()

    def setup(self, trainer: Trainer, pl_module: Distiller, stage: str) -> None:
        """Listen; what the run starts after this, to load images or to compile, does not."""
        if stage != "fit" or threading.current_thread() is not threading.main_thread():
            return
        connector: Any = trainer._signal_connector
        loop: Any = trainer.fit_loop.epoch_loop
        assert hasattr(connector, "register_signal_handlers")
        assert hasattr(loop, "_broadcast_sigterm_tensor")
        connector.register_signal_handlers = loop._broadcast_sigterm_tensor = lambda: None
        self._compilers.enter_context(compilers_ignore_signals())
        self._listen()

    def _listen(self) -> None:
        for number in STOP:
            self._before[number] = signal.signal(number, self._hear)

    @contextmanager
    def signals_ignored(self) -> Iterator[None]:
        """After the training a signal changes nothing; one that comes again 5 s later ends the process."""
        if threading.current_thread() is threading.main_thread():
            self._listen()
        try:
            yield
        finally:
            self._put_back()

    def _hear(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._asked_at is None:
            self._asked_at = now
        elif now - self._asked_at > SAME_SIGNAL_S and not self._saved:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def on_train_start(self, trainer: Trainer, pl_module: Distiller) -> None:
        """Make the group in which the ranks agree."""
        self._step = trainer.global_step
        if trainer.world_size > 1:
            self._group = torch.distributed.new_group(backend="gloo")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Distiller) -> None:
        """Stop here if a signal came since the last step; the epoch before is in `last.ckpt`."""
        self._read()
        self._post()
        self._read()
        if self._agreed:
            raise Preempted(exit_status(trainer))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Distiller, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop here if the ranks have agreed to, and if this batch was the last of an optimiser's step."""
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        self._read()
        if not self._agreed:
            self._post()
        if self._agreed and not trainer.is_last_batch:
            path = _preempted_checkpoint(trainer)
            assert path is not None  # the command line gives every fit one
            trainer.save_checkpoint(path)
            raise Preempted(exit_status(trainer))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Distiller) -> None:
        """Remove what was saved in the middle of this epoch, now that its end is."""
        path = _preempted_checkpoint(trainer)
        if path is not None and trainer.is_global_zero:
            path.unlink(missing_ok=True)

    def on_train_end(self, trainer: Trainer, pl_module: Distiller) -> None:
        """Leave nothing under way in the group."""
        self._read()

    def _post(self) -> None:
        asked = self._asked_at is not None
        if self._group is None:
            self._agreed = asked
        else:
            flag, largest = torch.tensor([int(asked)]), torch.distributed.ReduceOp.MAX
            work = torch.distributed.all_reduce(flag, largest, group=self._group, async_op=True)
            self._posted = flag, work

    def _read(self) -> None:
        if self._posted is not None:
            flag, work = self._posted
            self._posted = None
            work.wait()
            self._agreed = bool(flag.item())

    def on_exception(self, trainer: Trainer, pl_module: Distiller, exception: BaseException) -> None:
        """Say how to go on, and close W&B. Other errors: put the handlers back."""
        self._compilers.close()
        if not isinstance(exception, Preempted):
            self._put_back()
            return
        # The handlers stay: a launcher that sees one rank end may send the others a signal, and their
        # status is to be the same. So all end together, too.
        self._saved = True
        closed = not trainer.is_global_zero or _close(trainer)
        trainer.strategy.barrier()
        if self._before:
            # Until the process is gone: an interpreter that ends puts down handlers, but not this.
            for number in STOP:
                signal.signal(number, signal.SIG_IGN)
            self._before.clear()
        if not closed:  # W&B would go on trying
            lease.release()
            os._exit(EXIT_STATUS)

    def teardown(self, trainer: Trainer, pl_module: Distiller, stage: str) -> None:
        """Put the handlers back that were there before."""
        self._put_back()

    def _put_back(self) -> None:
        self._compilers.close()
        while self._before:
            signal.signal(*self._before.popitem())


def exit_status(trainer: Trainer) -> int:
    """Of a process that was asked to stop. Lightning takes any but 0 of those that it started for a crash."""
    environment = getattr(trainer.strategy, "cluster_environment", None)
    is_child = isinstance(environment, LightningEnvironment) and trainer.local_rank > 0
    return 0 if is_child else EXIT_STATUS


def _preempted_checkpoint(trainer: Trainer) -> Path | None:
    last = last_checkpoint(trainer)
    return last and last.with_name(PREEMPTED)


def _close(trainer: Trainer) -> bool:
    """Say how to go on, and close W&B; whether that was done in time."""
    paths = (_preempted_checkpoint(trainer), last_checkpoint(trainer))
    path = next((path for path in paths if path is not None and path.exists()), None)
    saved = f"{path} holds it" if path is not None else "no step was made yet"
    print(
        f"asked to stop in epoch {trainer.current_epoch + 1} after step {trainer.global_step}: {saved}; "
        f"go on with --config {trainer.default_root_dir}/config.yaml --ckpt_path auto",
        file=sys.stderr,
        flush=True,
    )
    return close_wandb(EXIT_STATUS, LAST_UPLOAD_S, preempted=True)
