"""What ends a command, told in one line."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from distill_dynamics.cluster.ranks import print_last_line
from distill_dynamics.errors import UserError


def _is_misconfiguration(error: BaseException) -> bool:
    """Whether it is Lightning's error of that name. Its class is not imported, which takes seconds."""
    return any(kind.__name__ == "MisconfigurationException" for kind in type(error).__mro__)


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """A user's mistake inside is one line on stderr and exit status 2; any other error goes through."""
    try:
        yield
    except Exception as error:
        known = isinstance(error, ValueError | OSError) or _is_misconfiguration(error)
        line = _line(error) if known else None
        if line is None:
            raise
        print_last_line(f"error: {line}")
        raise SystemExit(2) from None


def _line(error: Exception) -> str | None:
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, UserError):
        cause = cause.__cause__  # what a class raises, jsonargparse may wrap in a ValueError of its own
    if cause is None:
        if isinstance(error, OSError) and error.filename:
            return f"{error.filename}: {error.strerror}"
        return " ".join(str(error).split()) if _is_misconfiguration(error) else None
    line = " ".join(str(cause).split())
    key = _built(error)
    return f"{key}: {line}" if key and not line.startswith(key.split(".")[0]) else line


def line_of(error: Exception) -> str:
    """A line for any error: what it says, of which key of the config, and for one of no known kind where."""
    line, key = _line(error), _built(error)
    if line is not None:
        return line
    lacking = sorted(set(re.findall(r"Requirement '([\w-]+)|No module named '([\w.]+)", str(error))))
    if lacking:  # also where jsonargparse has wrapped it
        line = f"{' or '.join(one or other for one, other in lacking)} is not installed"
    else:
        *_, (frame, number) = traceback.walk_tb(error.__traceback__)
        text = " ".join(str(error).split())[:300]
        line = f"{type(error).__name__}{': ' if text else ''}{text} (in {frame.f_code.co_filename}:{number})"
    return f"{key}: {line}" if key else line


def _built(error: Exception) -> str | None:
    """The key whose class jsonargparse was about to build."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if key := getattr(frame.f_locals.get("component"), "dest", None):
            return key
    return None
