"""Files that are there completely or not at all."""

import errno
import os
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

_guards: dict[str, Callable[[], None]] = {}


def guard(folder: str | os.PathLike[str], check: Callable[[], None]) -> None:
    """Have `check` called before a file below `folder` is begun, and again before it gets its name.

    What it raises keeps the file from being written, and a folder that is gone from being made again.
    """
    _guards[os.path.realpath(folder)] = check


def unguard(folder: str | os.PathLike[str]) -> None:
    """Undo `guard`."""
    _guards.pop(os.path.realpath(folder), None)


def _check_guards(path: Path) -> None:
    real = Path(os.path.realpath(path))
    for folder, check in [*_guards.items()]:
        if real.is_relative_to(folder):
            check()


def _partial_name(path: Path) -> Path:
    # Not tempfile: its files are readable by their owner alone, and a run's folder is shared.
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")


@contextmanager
def _guarded(path: Path) -> Iterator[None]:
    try:
        with os_errors_name(path):
            _check_guards(path)
            yield
    except FileNotFoundError:
        _check_guards(path)  # the folder may be gone, which says more
        raise


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives the name of a file to write beside `path`, and renames it to `path` when the block ends.

    A reader finds the old file or the new one, never half of one, also after a kill or a loss of power: the
    content is synced to the disk before the rename. After an error the old file is as it was. Only a process
    that is killed leaves a file, whose name ends in `.partial`. A missing folder is made.

    Raises OSError with the name `path`, which that of a full disk does not have by itself, and what a `guard`
    raises.
    """
    path = Path(path)
    partial = _partial_name(path)
    try:
        with _guarded(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            _sync(partial)
            _check_guards(path)
            os.replace(partial, path)
    finally:
        _remove(partial)


def atomic_write_text(path: str | os.PathLike[str], text: str) -> None:
    """`atomic_write` of a text, in UTF-8."""
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8")


@contextmanager
def atomic_write_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """`atomic_write` for a folder: gives a new one to fill, which replaces `path` when the block ends.

    A process that is killed between the two renames leaves neither folder under that name, never a mixture.
    """
    path = Path(path)
    partial, old = _partial_name(path), _partial_name(path)
    try:
        with _guarded(path):
            partial.mkdir(parents=True)
            yield partial
            for file in [*partial.rglob("*"), partial]:
                _sync(file)
            _check_guards(path)
            if path.exists():
                os.rename(path, old)
            os.rename(partial, path)
            _sync(path.parent)
    finally:
        if old.exists() and not path.exists():
            os.rename(old, path)
        _remove(partial)
        _remove(old)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def os_errors_name(path: Path) -> Iterator[None]:
    """Raises the system's errors with the name `path`, and that of a full disk with the space left."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # a library's own, with a text of its own
            raise
        text = error.strerror
        if error.errno == errno.ENOSPC:
            free = shutil.disk_usage(path.parent).free / 2**20
            text = f"{text}: {free:.1f} MiB are free; make room and start again"
        raise OSError(error.errno, text, str(path)) from error


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Opens a regular file for reading.

    Raises OSError as `open` does, and for a pipe, a socket or a device, which would keep a reader waiting.
    """
    return open(path, "rb", opener=_regular)


def _regular(path: str, flags: int) -> int:
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    mode = os.fstat(descriptor).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # of a folder Python says so itself
        os.close(descriptor)
        raise OSError("no regular file")
    return descriptor


def remove_partial(folder: Path) -> None:
    """Remove what processes that were killed while writing left below `folder`."""
    for partial in [*folder.rglob(".*.partial")]:
        _remove(partial)


def _remove(path: Path) -> None:
    with suppress(OSError):  # a folder that cannot be written: the error of the write says more
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
