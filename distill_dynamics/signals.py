"""Signals that ask a job to stop, and the processes that load images or compile, which are not to mind them.

A scheduler may send them to every process of a job, as SLURM does. The training process is to finish its step
and save; torch takes the death of a worker or a compiler for a crash and would tear it down. So workers end
at their parent's word only, and compilers when they are done. (W&B's own process minds SIGTERM, and not
SIGUSR1.)
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

STOP = (signal.SIGTERM, signal.SIGUSR1)
"""What a scheduler sends to a job that is to make room: SLURM either, Kubernetes and torchrun the first."""


class Preempted(SystemExit):
    """Ends a run that was asked to make room, with a status that says so."""


@contextmanager
def block_stop_signals() -> Iterator[None]:
    """Processes that are started inside hold STOP back; this one hears it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def compilers_ignore_signals() -> Iterator[None]:
    """What `torch.compile` starts inside, compilers and its own workers, holds STOP back.

    So does the thread that compiles: it hears a signal when the graph is done, if no other thread has before.
    Whoever compiles has imported torch's part of it already.
    """
    dynamo = sys.modules.get("torch._dynamo")
    if dynamo is None:
        yield
        return

    def block(*_: object) -> None:  # older versions of torch say nothing of what is compiled
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP)

    def unblock(*_: object) -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP)

    dynamo.callback_handler.register_start_callback(block)
    dynamo.callback_handler.register_end_callback(unblock)
    try:
        yield
    finally:
        dynamo.callback_handler.remove_start_callback(block)
        dynamo.callback_handler.remove_end_callback(unblock)


def worker_ignore_signals(worker: int) -> None:
    """End this process, a DataLoader's worker, when its parent asks it to, and at nobody else's signal."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP)  # inherited already, but from a server that forks
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    while signal.sigwaitinfo(STOP).si_pid != os.getppid():
        pass
    os._exit(0)
