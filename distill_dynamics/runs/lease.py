"""A run directory belongs to one process at a time. A file in it shows that the process lives, and where.

The file is `filelock`'s lease: made and taken over in one step, touched by its holder, with a token that
names the claim. Two things are added here. Whether a holder lives: of a process of this machine that is known
at once, any other is watched, and a name alone is not taken for a machine. And what a lease leaves open,
"nothing stops the expired holder": it stops itself, as each file gets its name (`files.atomic_write`) only
while the token is still there.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from filelock import LeaseSettingsMismatch, SoftFileLease, Timeout

from distill_dynamics import files
from distill_dynamics.errors import UserError

RUNNING = ".running"

BEAT_S = 5.0
"""How often the file is touched."""

DEAD_S = 20.0
"""After how long without a touch the process is taken for dead, where its machine cannot be asked."""

PATIENCE_S = 1.0
"""How long the token may be missed: who looks whether a lease is stale puts it aside for a moment."""

ENDED = "ended\n"
"""What is made of the record of a dead process that `filelock` would wait for: no record."""

_INITIAL_NAMESPACE = 0xEFFFFFFC  # the kernel's number of the machine's own numbering of processes


class Lost(UserError):
    """This process no longer holds what it held. It must write no more."""


class _Record(NamedTuple):
    """What the file says, when it was last touched, and whose it is as far as that is known."""

    text: str
    inode: int
    beat: int
    host: str = "an unknown host"
    pid: int = 0
    machine: tuple[int, int] | None = None
    """One start of one machine, and its numbering of processes: containers have their own."""
    started: int | None = None
    """When the process was: its number may have been given to another since."""


class _Held(NamedTuple):
    folder: Path
    claim: SoftFileLease
    token: str


_held: _Held | None = None
_checked: float = 0.0
_lost: str | None = None


def hold(folder: Path) -> None:
    """Keep other processes from this run until `release`, or this one's death.

    No lock of the file system: those are often not kept over a network. Clocks of hosts are not compared.

    Raises:
        UserError: another process is at it. On another machine that takes up to `DEAD_S` to see.
    """
    global _held, _lost
    if _held is not None:
        if _held.folder == folder and _is_ours(_held):
            return
        release()
    path = folder / RUNNING
    claim = SoftFileLease(path, lease_duration=DEAD_S, heartbeat_interval=BEAT_S, thread_local=False)
    while True:
        seen = _look(path)
        # Never before that: filelock takes a record that it cannot read, or that has this host's name and
        # another start of the machine, for a dead one's.
        if seen is not None:
            _wait_for_its_end(path, seen)
        try:
            claim.acquire(blocking=False)
            break
        except (Timeout, LeaseSettingsMismatch):
            if seen is not None:
                _mark_ended(path, seen)
            time.sleep(min(0.1, DEAD_S / 10))
    assert claim.token is not None
    _held, _lost = _Held(folder, claim, claim.token), None
    files.guard(folder, check)


def release() -> None:
    """Let others have what this process holds, if anything. What a successor holds is left alone."""
    global _held
    if _held is not None:
        held, _held = _held, None
        files.unguard(held.folder)
        with suppress(OSError):  # it is found dead then
            held.claim.release()


def holds(folder: Path) -> bool:
    """Whether this process holds it, now."""
    return _held is not None and _held.folder == folder and _lost is None and _is_ours(_held)


@contextmanager
def released() -> Iterator[None]:
    """Around a whole command: `release` at its end."""
    try:
        yield
    finally:
        release()


def check() -> None:
    """Raise Lost if another process has what this one holds, or if it is gone."""
    global _checked, _lost
    if _held is None:
        return
    until = time.monotonic() + PATIENCE_S
    while _lost is None and not _is_ours(_held):
        if time.monotonic() > until:
            _lost = _how_lost(_held)
        else:
            time.sleep(PATIENCE_S / 10)
    if _lost is not None:
        raise Lost(_lost)
    _checked = time.monotonic()


def check_now_and_then() -> None:
    """`check`, at most every `BEAT_S`: for each step of a training."""
    if time.monotonic() - _checked > BEAT_S:
        with suppress(OSError):  # a server that is away for a while: the next write tells
            check()


def _is_ours(held: _Held) -> bool:
    """OSError where that cannot be seen, as while a server is away."""
    try:
        return f"={held.token}\n" in _path(held).read_text(errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return False


def _path(held: _Held) -> Path:
    return held.folder / RUNNING


def _how_lost(held: _Held) -> str:
    end = "this process stops and writes nothing more"
    if not held.folder.is_dir():
        return f"{held.folder} is gone, deleted or moved while it was written to: {end}"
    seen = _look(_path(held))
    if seen is None:
        return f"{_path(held)} is gone, so that another process may have had {held.folder}: {end}"
    taken = "" if seen.text == ENDED else f", by process {seen.pid} on {seen.host}"
    return f"{held.folder} was taken over while this process stood still{taken}: {end}"


def _wait_for_its_end(path: Path, first: _Record) -> None:
    """Return when the holder is dead, or has gone. UserError if it lives."""
    lives = _lives(first)
    if lives is None:
        print(
            f"{path.parent} was last held by process {first.pid} on {first.host}: "
            f"looking for {DEAD_S:.0f} s whether that lives",
            file=sys.stderr,
        )
    until = time.monotonic() + DEAD_S
    while lives is None and time.monotonic() < until:
        time.sleep(min(1.0, DEAD_S / 10))
        seen = _look(path)
        if seen is None or (seen.text, seen.inode) != (first.text, first.inode):
            return  # another's by now: `hold` looks again
        lives = True if seen.beat != first.beat else _lives(seen)
    if lives:
        raise UserError(
            f"run {path.parent} is under way, in process {first.pid} on {first.host}: stop that "
            "first, or give another --name. (What a process that was killed has left needs no clearing away)"
        )


def _lives(seen: _Record) -> bool | None:
    """Whether the holder lives; None where that cannot be known at once, and for one that stands still."""
    if seen.text == ENDED:
        return False
    if seen.machine is None or seen.machine != _here():
        return None
    try:
        state, *fields = Path(f"/proc/{seen.pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False
    if state in "ZX" or int(fields[18]) != seen.started:
        return False
    return None if state in "Tt" else True


def _mark_ended(path: Path, seen: _Record) -> None:
    """Make no record of a dead process's. In the file that was seen, whatever has its name by now."""
    try:
        file = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"{path}, of a process that has ended, cannot be taken over: remove it") from error
    try:
        if (
            os.fstat(file).st_ino == seen.inode
            and os.pread(file, 4096, 0) == seen.text.encode() != ENDED.encode()
        ):
            os.pwrite(file, ENDED.encode(), 0)  # first: it is never empty
            os.ftruncate(file, len(ENDED))
    finally:
        os.close(file)


def _look(path: Path) -> _Record | None:
    """None where there is no file."""
    try:
        with path.open(errors="replace") as file:  # opening it makes a network file system look anew
            stat, text = os.fstat(file.fileno()), file.read(4096)
    except FileNotFoundError:
        return None
    record = _Record(text, stat.st_ino, stat.st_mtime_ns)
    lines = dict(line.partition("=")[::2] for line in text.splitlines())
    with suppress(ValueError, KeyError):  # it was cut short
        host, _, number = lines["host"].partition("?pidns-")
        record = record._replace(host=host, pid=int(lines["pid"]))
        start, namespace = int(lines["start"]), int(number, 16) if number else _INITIAL_NAMESPACE
        record = record._replace(machine=(start >> 64, namespace), started=start % 2**64)
    return record


def _here() -> tuple[int, int] | None:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return int(boot.replace("-", ""), 16), os.stat("/proc/self/ns/pid").st_ino
    except (OSError, ValueError):  # no Linux
        return None
