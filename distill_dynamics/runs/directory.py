"""A run directory: its name and its record (`run.json`)."""

from __future__ import annotations

import itertools
import json
import os
import platform
import shlex
import subprocess
import sys
import uuid
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from distill_dynamics import __version__
from distill_dynamics.errors import UserError, first_line
from distill_dynamics.files import atomic_write_text, remove_partial
from distill_dynamics.runs.machine import machine

PROGRAM = "python -m distill_dynamics"
"""How a command line begins as one types it, wherever the package lies."""

_PACKAGES = ("torch", "torchvision", "lightning", "timm", "torchmetrics", "numpy", "wandb")


def claim(runs_dir: str | os.PathLike, name: str | None, stem: str) -> Path:
    """Make the directory of a new run: `runs_dir/name`, or `runs_dir/stem-1`, `-2`, ... without a name.

    Raises:
        UserError: `name` exists. Nothing of an earlier run is ever overwritten.
    """
    root = Path(runs_dir)
    root.mkdir(parents=True, exist_ok=True)
    if name is not None:
        try:
            return _new(root / name)
        except FileExistsError as error:
            raise UserError(
                f"run {root / name} exists; choose another name, or continue it with "
                f"--config {root / name}/config.yaml --ckpt_path last"
            ) from error
    for number in itertools.count(1):
        with suppress(FileExistsError):
            return _new(root / f"{stem}-{number}")
    raise AssertionError("unreachable")


def _new(run_dir: Path) -> Path:
    run_dir.mkdir(parents=True)
    _begin(run_dir)
    return run_dir


def _begin(run_dir: Path) -> None:
    _write(run_dir, {"id": uuid.uuid4().hex[:8], "starts": []})


def _write(run_dir: Path, content: dict[str, Any]) -> None:
    atomic_write_text(run_dir / "run.json", json.dumps(content, indent=2) + "\n")


def take_up(run_dir: Path) -> None:
    """Make the directory of a run ready to be continued, or begun where it holds no run yet.

    That is so where a run was killed as it made the directory, or where another has made it, a job's log file
    in it. Half-written files of a process that was killed are removed.

    Raises:
        UserError: it holds the files of a run, but not its run.json, or a broken one.
    """
    remove_partial(run_dir)
    if not (run_dir / "run.json").exists():
        for name in ("config.yaml", "metrics.csv", "checkpoints"):
            if (run_dir / name).exists():
                raise UserError(f"{run_dir} has a {name} and no run.json: no run that can be continued")
        _begin(run_dir)
    _content(run_dir)


def _content(run_dir: Path) -> dict[str, Any]:
    """What run.json holds. UserError where that is no record of a run."""
    path = run_dir / "run.json"
    with suppress(ValueError, KeyError, TypeError):
        content = json.loads(path.read_text())
        if isinstance(content["starts"], list) and isinstance(content["id"], str):
            return content
    raise UserError(f"{path}: cut short or altered, so no run that can be continued; give another --name")


def starts_of(run_dir: Path) -> list[dict[str, Any]]:
    """What `record` has written of each start, in order. UserError for no record of a run."""
    return _content(run_dir)["starts"]


def has_ended(run_dir: Path) -> bool:
    """Whether the last start in `run.json` has an end; that of a process that was killed has none."""
    starts = starts_of(run_dir)
    return not starts or starts[-1]["ended"] is not None


def succeeded(start: dict[str, Any]) -> bool:
    """Whether a start in `run.json` came to its end: on no error, and not to make room."""
    ended = start.get("ended")
    return ended is not None and ended.get("error") is None and not ended.get("preempted")


def has_succeeded(run_dir: Path) -> bool:
    """Whether the run came to its end; not one that never began. UserError for no record of a run."""
    starts = starts_of(run_dir) if (run_dir / "run.json").exists() else []
    return bool(starts) and succeeded(starts[-1])


def identity(run_dir: Path) -> str:
    """A name that no other run has, anywhere: W&B knows the run by it."""
    return f"{run_dir.name}-{_content(run_dir)['id']}"


def record(run_dir: Path, epoch: int, **facts: Any) -> None:
    """Add one start to `run.json`: when, from which epoch, on what, with what code, versions, seed and data.

    A continued run has one entry a start, so that a change of version or code on the way is seen. Its "ended"
    is null until `record_end`: of a run that is killed it stays so. Times are UTC.
    """
    content = _content(run_dir)
    content["starts"].append(
        {
            "from_epoch": epoch,
            "started": _now(),
            **facts,
            "machine": machine(),
            "command": _command(sys.argv),
            "commit": _commit(),
            "python": platform.python_version(),
            "versions": versions(),
            "ended": None,
        }
    )
    _write(run_dir, content)


def versions() -> dict[str, str]:
    """Versions of this package and of those that its numbers depend on, by name."""
    # Ours from the code: in a checkout what is installed may say that of an earlier one.
    return {"distill_dynamics": __version__, **{name: metadata.version(name) for name in _PACKAGES}}


def record_end(
    run_dir: Path, epoch: int, error: BaseException | None = None, preempted: bool = False
) -> None:
    """Say in the last start of `run.json` after how many epochs it ended, and on which error, if on one.

    A run that was asked to make room and is to be continued has "preempted": true, and no error.
    """
    content = _content(run_dir)
    text = None
    if error is not None:
        text = type(error).__name__ + (f": {first_line(error)}" if str(error).strip() else "")
    ended = {"epoch": epoch, "error": text} | ({"preempted": True} if preempted else {})
    content["starts"][-1] |= {"ended": ended, "ended_at": _now()}
    _write(run_dir, content)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _command(argv: list[str]) -> str:
    """The command line as one types it, without a launcher's part and wherever the package lies."""
    ours = Path(argv[0]).name in ("__main__.py", "distill_dynamics")
    return shlex.join([*(PROGRAM.split() if ours else [Path(argv[0]).name]), *argv[1:]])


def _commit() -> str | None:
    """The checkout's commit, "+changes" where files differ from it, None outside a repository."""
    try:
        command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+changes"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
