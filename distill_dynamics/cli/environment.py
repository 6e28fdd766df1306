"""What the environment says, settled before a command does anything."""

from __future__ import annotations

import os

from distill_dynamics.errors import UserError, nearest

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


_WANDB_MODES = ("offline", "online", "disabled", "shared", "dryrun", "run")


def wandb_mode(given: str | None) -> str:
    """W&B's mode: as given, else as WANDB_MODE says, else offline. UserError for one that there is not."""
    mode = given or os.environ.get("WANDB_MODE", "offline")
    if mode not in _WANDB_MODES:
        raise UserError(
            "the environment variable WANDB_MODE is online, offline or disabled, "
            f"not {mode!r}{nearest(mode, _WANDB_MODES, few=0)}"
        )
    return mode
