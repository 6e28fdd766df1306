"""Files that are there whole or not at all."""

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
    """Have `check` called before a file below `folder` is begun, and again before it is put in its place.

    What it raises keeps the file from being written, and a folder that is gone from being made again.
    """
    _guards[os.path.realpath(folder)] = check


def unguard(folder: str | os.PathLike[str]) -> None:
    """Undo `guard`."""
    _guards.pop(os.path.realpath(folder), None)


def _may_write(path: Path) -> None:
    real = Path(os.path.realpath(path))
    for folder, check in [*_guards.items()]:
        if real.is_relative_to(folder):
            check()


@contextmanager
def whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives the name of a file to write beside `path`, and puts it in its place when the block ends.

    Whoever reads `path` finds the old file or the new one, never half of one, also after a kill or a loss of
    power: what was written is on the disk before the name is. After an error there is no new file, and the
    old one is as it was. Only a process killed in between leaves a file, whose name ends in `.partial`. A
    missing folder is made.

    Raises OSError as the system does, but always with the name `path`: that of a full disk has none. And what
    a `guard` raises.
    """
    path = Path(path)
    # Not tempfile: its files are readable by their owner alone, and a run's folder is shared.
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with told_of(path):
            _may_write(path)
            path.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            _may_write(path)
            os.replace(partial, path)
    except FileNotFoundError:
        _may_write(path)  # the folder may be gone, which says more
        raise
    finally:
        _remove(partial)


@contextmanager
def whole_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """`whole` for a folder: gives a new one to fill, which takes the place of `path` when the block ends.

    A process that is killed in the moment of the change may leave neither the old folder nor the new one
    under that name, but never a mixture of both.
    """
    path = Path(path)
    partial, old = (path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial") for _ in range(2))
    try:
        with told_of(path):
            _may_write(path)
            partial.mkdir(parents=True)
            yield partial
            for file in [*partial.rglob("*"), partial]:
                _sync(file)
            _may_write(path)
            if path.exists():
                os.rename(path, old)
            os.rename(partial, path)
            _sync(path.parent)
    except FileNotFoundError:
        _may_write(path)
        raise
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
def told_of(path: Path) -> Iterator[None]:
    """Raises the system's errors with the name `path`, and that of a full disk with the room that is left."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # a library's own, with a text of its own
            raise
        raise OSError(error.errno, f"{error.strerror}{_space_left(error, path)}", str(path)) from error


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Opens for reading a file that has an end.

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


def _space_left(error: OSError, path: Path) -> str:
    if error.errno != errno.ENOSPC:
        return ""
    return f": {shutil.disk_usage(path.parent).free / 2**20:.1f} MiB are free; make room and start again"
