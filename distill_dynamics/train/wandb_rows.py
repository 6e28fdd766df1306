"""What W&B gets of a row: it makes a panel of each metric that has a history and is not hidden."""

from __future__ import annotations

import re
from typing import Any
from weakref import WeakKeyDictionary

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

_OF_TEACHERS = re.compile(r"(dynamics/)?teacher(_[^/]+)?/")

_AXES = {"val/": "epoch", "dynamics/": "dynamics/epoch"}
"""What metrics that begin so are drawn over; others over Lightning's trainer/global_step."""

_NO_PANEL = re.compile(r".+_se|.+/signature/(energy_.+|massive_channel)")
"""Serves another metric (a standard error), or is told by a curve of its own (flatness and shares)."""

_defined: WeakKeyDictionary[Any, set[str]] = WeakKeyDictionary()


def known_once(name: str) -> bool:
    """Whether a metric is a teacher's: measured once, it stands in the run's summary alone."""
    return bool(_OF_TEACHERS.match(name))


def wandb_loggers_of(trainer: Trainer) -> list[WandbLogger]:
    """Those of W&B among a trainer's loggers."""
    return [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]


@rank_zero_only
def log_wandb_row(logger: WandbLogger, row: dict[str, Any], step: int) -> None:
    """Log a row, but for what is known once: that goes into the summary.

    Each metric is defined by its full name, once a run: a glob would fight that of Lightning's logger.
    """
    run = logger.experiment
    defined = _defined.setdefault(run, set())
    for name in row:
        if name not in defined:
            defined.add(name)
            _define(run, name)
    once = {name: value for name, value in row.items() if known_once(name)}
    run.summary.update(once)
    history = {name: value for name, value in row.items() if name not in once}
    if history.keys() - _AXES.values():
        getattr(logger, "log_row", logger.log_metrics)(history, step=step)


def _define(run: Any, name: str) -> None:
    axis = next((axis for begin, axis in _AXES.items() if name.startswith(begin) and name != axis), None)
    hidden = name in _AXES.values() or known_once(name) or bool(_NO_PANEL.fullmatch(name))
    if axis or hidden:
        run.define_metric(name, step_metric=axis, hidden=hidden)
