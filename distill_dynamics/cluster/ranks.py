"""The processes that train together, and those of them that Lightning starts itself: these fail as one.

With several devices and no launcher, the first process starts the others of its machine. An error in one of
them is told in one line in all, is the run's in run.json, sets the exit status and leaves no process behind:

* One of the others that fails hands its line to the first, and waits to be ended. As it is still there, the
  first is not told of a lost connection instead.
* The first watches them. It fails with what one of them hands over, unless it fails by itself: mistakes are
  often made by all. It ends the others first, whatever it fails with.
* If it is killed, the others end.

Lightning would kill the first process five seconds after another has failed, and leave the others alone with
a failure of the first. Under SLURM and torchrun the launcher ends the others.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from distill_dynamics.errors import UserError, first_line
from distill_dynamics.files import atomic_write

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

PARENT = "DISTILL_DYNAMICS_PARENT"
"""For the others, in the environment: the first one's process id, and a folder for what they hand over."""

POLL_S = 0.2
OWN_FAILURE_S = 3.0
"""How long the first process may take to fail by itself with what another has failed with."""
LEFT_ALONE_S = 60.0
"""How long one that has failed waits to be ended before it ends by itself."""


class Failure(NamedTuple):
    """Of one of the others."""

    status: int
    line: str
    printed: bool  # it has printed a traceback itself


class _Others:
    """The processes that this one starts; `failed` is called with the error of one of them."""

    def __init__(self, failed: Callable[[Exception], None]) -> None:
        self.failed = failed
        self.folder = tempfile.TemporaryDirectory(prefix="distill_dynamics_")
        self.processes: list[subprocess.Popen] = []
        self._lock = threading.Lock()
        self._speaker: int | None = None  # the thread that says what this run fails with

    def watch(self, child_processes: list[subprocess.Popen]) -> None:
        self.processes = child_processes
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while (failure := self._failure()) is None:
            time.sleep(POLL_S)
        time.sleep(OWN_FAILURE_S)
        self.end()
        if not failure.printed:
            print(failure.line, file=sys.stderr, flush=True)
        error = UserError if failure.status == 2 else RuntimeError
        with suppress(Exception):  # whatever it is, the process has to end
            self.failed(error(failure.line.removeprefix("error: ")))
            self.folder.cleanup()
        os._exit(failure.status)  # the main thread waits for the others, and would for ever

    def _failure(self) -> Failure | None:
        for path in Path(self.folder.name).glob("[0-9]*"):
            number, line = path.read_text().split(" ", 1)
            return Failure(int(number), line, printed=number == "1")
        for rank, process in enumerate(self.processes, start=1):
            if status := process.poll():
                how = f"with status {status}" if status > 0 else f"by signal {-status}"
                line = f"error: the process of device {rank} was ended {how}"
                return Failure(status if status > 0 else 128 - status, line, printed=False)
        return None

    def end(self) -> None:
        """End them. Of two threads that have something to say the second never comes back."""
        with self._lock:
            self._speaker = self._speaker or threading.get_ident()
        if self._speaker != threading.get_ident():
            threading.Event().wait()
        for process in self.processes:
            process.kill()


_others: _Others | None = None


def watch_others(trainer: Trainer, failed: Callable[[Exception], None]) -> None:
    """If this process is to start others: `failed` is called with the error on which one of them fails."""
    # Here, not above: the program's help needs no Lightning, and every command goes through this module.
    from lightning.pytorch.strategies.launchers import subprocess_script

    global _others
    launcher, environment = (
        getattr(trainer.strategy, name, None) for name in ("launcher", "cluster_environment")
    )
    if (
        isinstance(launcher, subprocess_script._SubprocessScriptLauncher)
        and environment is not None
        and not environment.creates_processes_externally
    ):
        _others = _Others(failed)
        os.environ[PARENT] = f"{os.getpid()} {_others.folder.name}"
        assert hasattr(subprocess_script, "_launch_process_observer")
        subprocess_script._launch_process_observer = _others.watch


def end_others() -> None:
    """End the processes that this one has started, if any: it fails."""
    if _others is not None:
        _others.end()


def print_last_line(line: str) -> None:
    """Print the line on which this process ends with status 2, or have the first one print it."""
    _hand_over(2, line)
    end_others()
    print(line, file=sys.stderr)


@contextmanager
def failing_as_one() -> Iterator[None]:
    """Around a whole command; errors that go through it have a traceback."""
    if parent := _parent():
        threading.Thread(target=_end_with, args=parent[:1], daemon=True).start()
    try:
        yield
    except Exception as error:
        if parent:
            traceback.print_exc()
            _hand_over(1, f"{type(error).__name__}: {first_line(error)}")
        end_others()
        raise


def _parent() -> tuple[int, Path] | None:
    """Process id and folder of the first process, if that has started this one."""
    number, _, folder = os.environ.get(PARENT, "").partition(" ")
    return (int(number), Path(folder)) if number == str(os.getppid()) else None


def _hand_over(status: int, line: str) -> None:
    if parent := _parent():
        with suppress(OSError):  # no room for it: then it is told here
            with atomic_write(parent[1] / str(os.getpid())) as partial:
                partial.write_text(f"{status} {line}")
            time.sleep(LEFT_ALONE_S)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(POLL_S)
    os._exit(1)
