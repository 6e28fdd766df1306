"""What is settled before a command does anything: the environment, the run's name, what may be called."""

from __future__ import annotations

import difflib
import inspect
import os
import pkgutil
import typing
from contextlib import suppress
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import Callback, LightningDataModule
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from distill_dynamics.errors import UserError

_MAY_BE_EMPTY = ("WANDB_", "PL_", "SLURM_", "TORCHELASTIC_")
_RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
_LAUNCHED = (*_RANKS, "MASTER_ADDR", "MASTER_PORT")


def drop_empty_variables() -> None:
    """Take a variable that is set to nothing, as docker compose and job scripts do, for one that is not set.

    Those that W&B, Lightning and launchers read; to others nothing is a value (CUDA_VISIBLE_DEVICES).
    """
    for name, value in [*os.environ.items()]:
        if not value.strip() and (name.startswith(_MAY_BE_EMPTY) or name in _LAUNCHED):
            del os.environ[name]
    for name in _RANKS:
        if not os.environ.get(name, "0").strip().isdigit():
            raise UserError(f"the environment variable {name} is a whole number, not {os.environ[name]!r}")


def check_name(name: str | None) -> None:
    """UserError if a run's name is not one component of a path."""
    if name is not None and (
        not name.strip() or name in (".", "..") or "/" in name or os.sep in name or not name.isprintable()
    ):
        raise UserError(
            f"--name {name!r}: a run's name is that of one folder in --runs_dir, neither empty nor a path"
        )


_MAKES = (nn.Module, Optimizer, LRScheduler, Callback, LightningDataModule)


def refuse_functions(config: Any, key: str = "") -> None:
    """UserError, before anything is called, if a class_path below is that of a function of an unknown kind.

    What a class makes is known, and jsonargparse asks for the right kind. A function's is what it says that
    it returns: `os.system` says nothing.
    """
    if isinstance(config, list):
        for place, value in enumerate(config):
            refuse_functions(value, f"{key}[{place}]")
    if not isinstance(config, Namespace | dict):
        return
    below = config if isinstance(config, dict) else vars(config)
    path = below.get("class_path")
    if isinstance(path, str):
        made, returns = pkgutil.resolve_name(path), None
        with suppress(NameError, TypeError, AttributeError):
            returns = typing.get_type_hints(made).get("return")
        if not inspect.isclass(made) and not (inspect.isclass(returns) and issubclass(returns, _MAKES)):
            raise UserError(
                f"{key}: {path} is no class, and does not say that it returns a Module, an optimiser, a "
                "schedule, a callback or a DataModule: it is not called"
            )
    for name, value in below.items():
        refuse_functions(value, f"{key}.{name}" if key else str(name))


def check_trainer(trainer: Any) -> None:
    """UserError for numbers that Lightning takes and that make no training."""
    if trainer.accumulate_grad_batches < 1:
        raise UserError(
            f"trainer.accumulate_grad_batches: {trainer.accumulate_grad_batches} must be at least 1 (which "
            "adds up nothing)"
        )
    clip = trainer.gradient_clip_val
    if clip is not None and not 0 <= clip < float("inf"):
        raise UserError(f"trainer.gradient_clip_val: {clip} must be 0 or more, or null for no clipping")


_WANDB_MODES = ("offline", "online", "disabled", "shared", "dryrun", "run")


def wandb_mode(given: str | None) -> str:
    """W&B's mode: as given, else as WANDB_MODE says, else offline. UserError for one that there is not."""
    mode = given or os.environ.get("WANDB_MODE", "offline")
    if mode not in _WANDB_MODES:
        close = difflib.get_close_matches(mode, _WANDB_MODES, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise UserError(
            f"the environment variable WANDB_MODE is online, offline or disabled, not {mode!r}{hint}"
        )
    return mode
