"""SIGTERM, SIGUSR1 and Ctrl-C in commands that do not train: they end there and then."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from lightning.pytorch import Trainer

from distill_dynamics.cluster.preemption import SAME_SIGNAL_S, exit_status
from distill_dynamics.cluster.ranks import end_others
from distill_dynamics.signals import STOP, Preempted
from distill_dynamics.train.rank import is_first_rank


@contextmanager
def stopped_at_once(trainer: Trainer, line: str) -> Iterator[None]:
    """Around what a Trainer does but training: a signal ends it, and the first process prints `line`.

    The status is that of a run that was preempted, of Ctrl-C 130. A signal that comes more than 5 s after the
    first ends the process itself. (Lightning's handler of SIGTERM takes note of it, which its training alone
    looks at: everything else would go on to its end.)
    """
    connector: Any = trainer._signal_connector
    assert hasattr(connector, "register_signal_handlers")
    connector.register_signal_handlers = lambda: None
    first: float | None = None

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal first
        now = time.monotonic()
        if first is None:
            first = now
            raise Preempted(exit_status(trainer))
        if now - first > SAME_SIGNAL_S:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    is_main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, stop) for number in STOP} if is_main else {}
    try:
        yield
    except (SystemExit, KeyboardInterrupt) as error:
        # Lightning makes a SystemExit of it.
        ctrl_c = any(isinstance(e, KeyboardInterrupt) for e in (error, error.__context__))
        if not ctrl_c and not isinstance(error, Preempted):
            raise
        for number in before:  # until the process is gone: its status is to be this one
            before[number] = signal.SIG_IGN
        end_others()
        if is_first_rank():
            print(line, file=sys.stderr, flush=True)
        raise (SystemExit(130) if ctrl_c else error) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
