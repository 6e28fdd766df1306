"""Commands of this program as processes, one after another, which stop when this one is asked to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from types import FrameType, TracebackType

from distill_dynamics.signals import STOP


class Children:
    """A context: while it lasts, a signal to stop goes to the process that runs, and is remembered.

    A process of its own gives all memory back, and a crash of it is none of this one.
    """

    asked: int | None = None
    """The signal that asked to stop."""

    def __init__(self) -> None:
        self._child: subprocess.Popen | None = None
        self._before: dict[int, signal._HANDLER] = {}

    def __enter__(self) -> Children:
        for number in (signal.SIGINT, *STOP):
            self._before[number] = signal.signal(number, self._hear)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.asked = self.asked or number
        if self._child is not None and not (number == signal.SIGINT and _on_terminal()):
            self._child.send_signal(number)

    def run(self, words: Sequence[str]) -> int:
        """Run a command to its end. Its exit status, as a shell has it: 128 + n where signal n ended it."""
        self._child = subprocess.Popen([sys.executable, "-m", "distill_dynamics", *words])
        if self.asked:  # as it was started
            self._child.send_signal(self.asked)
        while True:
            try:
                status = self._child.wait(0.2)  # a signal may come to another thread, and end no wait
                break
            except subprocess.TimeoutExpired:
                pass
        self._child = None
        return status if status >= 0 else 128 - status


def _on_terminal() -> bool:
    """Whether Ctrl-C reaches children by itself: a terminal sends it to all that run in its foreground."""
    try:
        with open("/dev/tty") as terminal:
            return os.tcgetpgrp(terminal.fileno()) == os.getpgrp()
    except OSError:
        return False
