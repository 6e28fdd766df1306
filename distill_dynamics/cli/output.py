"""Standard output whose reader may go away."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class _Output:
    """Standard output for as long as somebody reads it."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Write, or say once that nobody reads, and write no more."""
        try:
            return self.stream.write(text)
        except BrokenPipeError:
            return self._closed(len(text))

    def flush(self) -> None:
        """Likewise."""
        try:
            self.stream.flush()
        except BrokenPipeError:
            self._closed(0)

    def _closed(self, written: int) -> int:
        # The stream's own number, too: Python flushes it when it ends.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.stream.fileno())
        os.close(nowhere)
        print("standard output was closed: what is printed there is lost from here on", file=sys.stderr)
        return written

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
