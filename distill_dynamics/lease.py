"""A run directory belongs to one process at a time. A file in it shows that the process lives, and where."""

from __future__ import annotations

import json
import os
import platform
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from distill_dynamics.errors import UserError

RUNNING = ".running"

BEAT_S = 5.0
"""How often the file is touched."""

DEAD_S = 20.0
"""After how long without a touch the process is taken for dead, where its machine cannot be asked."""


class _Owner(NamedTuple):
    host: str = "an unknown host"
    pid: int = 0
    machine: str | None = None
    """One start of one machine, and its numbering of processes: containers have their own."""
    started: str | None = None
    """When the process was: its number may have been given to another since."""


_held: tuple[Path, threading.Event] | None = None


def hold(run_dir: Path) -> None:
    """Keep other processes from this run until `release`, or this one's death.

    No lock of the file system: those are often not kept over a network. Clocks of hosts are not compared.

    Raises:
        UserError: another process is at it. On another machine that takes up to `DEAD_S` to see.
    """
    global _held
    path = run_dir / RUNNING
    while True:
        try:
            with path.open("x") as file:
                json.dump(_this_process()._asdict(), file)
            break
        except FileExistsError:
            _wait_for_its_end(path)
            path.unlink(missing_ok=True)
    _held = path, threading.Event()
    threading.Thread(target=_beat, args=_held, daemon=True).start()


def release() -> None:
    """Let others have what this process holds, if anything."""
    global _held
    if _held is not None:
        path, over = _held
        _held = None
        over.set()
        with suppress(OSError):  # it is found dead then
            path.unlink(missing_ok=True)


@contextmanager
def released() -> Iterator[None]:
    """Around a whole command: `release` at its end."""
    try:
        yield
    finally:
        release()


def _beat(path: Path, over: threading.Event) -> None:
    while not over.wait(BEAT_S):
        with suppress(OSError):  # the next may come through
            os.utime(path)


def _wait_for_its_end(path: Path) -> None:
    seen = _read(path)
    if seen is None:
        return
    owner, beat = seen
    here = _this_process()
    if owner.machine is not None and owner.machine == here.machine:
        if owner.started == _started(owner.pid) and owner != here:
            raise _under_way(path, owner)
        return
    print(
        f"{path.parent} was last held by process {owner.pid} on {owner.host}: "
        f"looking for {DEAD_S:.0f} s whether that lives",
        file=sys.stderr,
    )
    until = time.monotonic() + DEAD_S
    while time.monotonic() < until:
        time.sleep(min(1.0, DEAD_S / 10))
        seen = _read(path)
        if seen is None:
            return
        if seen[1] != beat:
            raise _under_way(path, owner)


def _under_way(path: Path, owner: _Owner) -> UserError:
    return UserError(
        f"run {path.parent} is under way, in process {owner.pid} on {owner.host}: stop that first, or give "
        "another --name. (What a process that was killed has left needs no clearing away)"
    )


def _read(path: Path) -> tuple[_Owner, int] | None:
    """Who made the file, and when he last touched it; None if it is gone."""
    try:
        with path.open() as file:  # opening it is what makes a network file system look anew
            beat = os.fstat(file.fileno()).st_mtime_ns
            text = file.read()
    except FileNotFoundError:
        return None
    try:
        content: dict[str, Any] = json.loads(text)
    except ValueError:  # killed as it was written
        content = {}
    return _Owner(**content), beat


def _this_process() -> _Owner:
    return _Owner(platform.node(), os.getpid(), _machine(), _started(os.getpid()))


def _machine() -> str | None:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # no Linux
        return None


def _started(pid: int) -> str | None:
    """When a process of this machine was started; None if it has ended."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else fields[18]
