"""What is refused before a command does anything: a run's name, the Trainer's numbers, what may be called."""

from __future__ import annotations

import inspect
import os
import pkgutil
import typing
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import Callback, LightningDataModule
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from distill_dynamics.errors import UserError


def import_all(*rooms: ModuleType) -> None:
    """Import all that rooms have to offer: of what is imported, jsonargparse knows the name alone."""
    for room in rooms:
        for name in room.__all__:
            getattr(room, name)


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


def stem_of(config: Any) -> str:
    """What runs are called where no name is given."""
    return Path(str(config.config[-1])).stem if config.config else "run"
