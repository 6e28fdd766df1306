"""Standard output whose reader may go away."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class _Output:
    """A stream for as long as somebody reads it; then it says so once on standard error, and goes nowhere."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        self._while_read(self.stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._while_read(self.stream.flush)

    def _while_read(self, do: Callable[..., Any], *args: Any) -> None:
        try:
            do(*args)
        except BrokenPipeError:
            # The stream's own number, too: Python flushes it when it ends.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)
            print("standard output was closed: what is printed there is lost from here on", file=sys.stderr)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def output_may_close() -> Iterator[None]:
    """Around a whole command: it goes on when the reader of its output, `head -1` for one, has gone."""
    if sys.stdout is None:
        yield
        return
    plain, output = sys.stdout, _Output(sys.stdout)
    sys.stdout = output
    try:
        yield
    finally:
        output.flush()
        sys.stdout = plain
