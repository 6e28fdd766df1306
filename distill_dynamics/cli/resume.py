"""Which checkpoint a command is to read, and which run `fit` continues."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from distill_dynamics.errors import UserError
from distill_dynamics.train.checkpoints import LAST, PREEMPTED, newest_intact, read_intact
from distill_dynamics.train.rank import is_first_rank


def find_checkpoint(config: Any, command: str | None) -> tuple[Path | None, str | None]:
    """The run that `config.ckpt_path` is of, None where a new one begins, and its file.

    UserError where that is not there or cannot be read.
    """
    given = config.ckpt_path
    if given is None:
        return None, None
    if given == "auto" and command != "fit":
        raise UserError("--ckpt_path auto is for fit, which may have to begin: give last, best or a file")
    if given == "best":
        run_dir = _given_run_dir(config)
        path = run_dir / "checkpoints" / "best.ckpt"
        if not path.is_file():
            there = "say last" if path.with_name(LAST).is_file() else "give the --config of a run"
            raise UserError(f"--ckpt_path best: there is no {path}; {there}")
        read_intact(path)
        return run_dir, str(path)
    if given in ("auto", "last"):
        return _newest(config, given, command)
    path = Path(given)
    if not path.is_file():
        raise UserError(f"--ckpt_path: no such file: {given} (or say auto, last or best)")
    run_dir = path.resolve().parents[1]
    continues = (
        command == "fit" and config.name == run_dir.name and _given_run_dir(config).resolve() == run_dir
    )
    read_intact(path)
    return _given_run_dir(config) if continues else None, str(path)


def _newest(config: Any, given: str, command: str | None) -> tuple[Path | None, str | None]:
    run_dir = _given_run_dir(config)
    # Others than fit want one that the record tells of.
    newest = newest_intact(run_dir, begun=command == "fit")
    if given == "last" and newest is None:
        raise UserError(
            f"--ckpt_path last: there is no whole checkpoint in {run_dir / 'checkpoints'}; "
            "give the --config of a run"
        )
    # The other ranks look only for checkpoints, which the first one cannot write without them.
    begins = given == "auto" and is_first_rank() and not run_dir.exists()
    return None if begins else run_dir, None if newest is None else str(newest)


def _given_run_dir(config: Any) -> Path:
    """The directory of the run whose config.yaml was given, wherever it has been moved to."""
    for path in reversed(config.config or []):
        path = Path(str(path))
        if path.name.startswith("config") and (path.parent / "run.json").is_file():
            return path.parent
    if config.name is None:
        raise UserError(
            f"--ckpt_path {config.ckpt_path} needs to know the run: give --name, or --config RUN/config.yaml"
        )
    return Path(config.runs_dir) / config.name


def of_these_devices(ckpt_path: str | None, trainer: Trainer) -> str | None:
    """Another checkpoint, of an epoch's end, for one of an epoch that was begun on other devices."""
    path = Path(ckpt_path or "")
    if path.name != PREEMPTED:
        return ckpt_path
    content = read_intact(path)
    was = content["distill_dynamics"]["begun_epoch"]["layout"]
    now = {"devices": trainer.world_size, "nodes": trainer.num_nodes}
    now = {name: number for name, number in now.items() if name in was}
    if was == was | now:
        return ckpt_path
    end = newest_intact(path.parents[1], begun=False)
    if is_first_rank():
        print(
            f"{path} is of the middle of epoch {content['epoch'] + 1}, begun on {_devices(was)}; "
            f"on {_devices(now)} that epoch is made anew, from {end or 'the start of the run'}",
            file=sys.stderr,
        )
    return None if end is None else str(end)


def _devices(layout: dict[str, Any]) -> str:
    return f"{layout['devices']} devices" + (f" of {layout['nodes']} nodes" if "nodes" in layout else "")
