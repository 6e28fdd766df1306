"""The settings of an optimiser, its schedule and its precision, beside those of a run's checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from distill_dynamics.errors import UserError

PLACE = ("last_epoch", "progress", "_step_count", "_last_lr", "_get_lr_called_within_step", "_is_initial")
"""What a schedule's state says of where training is; the rest are its settings."""

_HERE = "go on with what it had, or begin a new run from its weights (model.student.checkpoint)"


def options_of(group: Mapping[str, Any]) -> dict[str, Any]:
    """A parameter group without its parameters. A rate that is a tensor is copied: it changes in place."""
    return {
        name: value.clone() if isinstance(value, Tensor) else value
        for name, value in group.items()
        if name not in ("params", "initial_lr")
    }


def settings_of(
    optimizer: Optimizer, options: list[dict[str, Any]], scheduler: LRScheduler | None, precision: str
) -> dict[str, Any]:
    """Plain values that a checkpoint can hold; `options` are those of the groups before any step."""
    return {
        "precision": precision,
        "optimizer": type(optimizer).__name__,
        "groups": [_plain(group) for group in options],
        "scheduler": type(scheduler).__name__,
        "schedule": _plain({} if scheduler is None else scheduler.state_dict()),
    }


def saved_settings(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint says of `settings_of`; of an earlier version's, what its optimiser's state shows."""
    found = checkpoint["distill_dynamics"].get("settings")
    if found is not None:
        return found
    groups = checkpoint["optimizer_states"][0]["param_groups"]
    return {
        "groups": [
            _plain({**options_of(group), "lr": group.get("initial_lr", group["lr"])}) for group in groups
        ]
    }


def check_settings(then: Mapping[str, Any], now: Mapping[str, Any], schedule_can_change: bool) -> None:
    """UserError where the checkpoint's state is not this optimiser's, or not this schedule's.

    A rate that is another one is no error: it may come from other devices, by the linear rule.
    """
    for part in ("optimizer", "scheduler"):
        if then.get(part, now[part]) != now[part] and not (part == "scheduler" and schedule_can_change):
            raise UserError(
                f"model.{part}: the checkpoint was made with {then[part]}, here it is {now[part]}: {_HERE}"
            )
    if schedule_can_change:
        return
    was, here = then.get("schedule", now["schedule"]), now["schedule"]
    for name in differing(was, here):
        if name not in (*PLACE, "base_lrs"):
            raise UserError(
                f"model.scheduler: the checkpoint was made with {name} {was[name]}, here it is {here[name]}. "
                f"{now['scheduler']} cannot change on the way (WarmupCosine and ProgressCosine can): {_HERE}"
            )


def changes(then: Mapping[str, Any], now: Mapping[str, Any], schedule_can_change: bool) -> list[str]:
    """What is set otherwise than in the checkpoint, such as "lr 0.002, now 0.001"."""
    found: dict[str, None] = {}
    was = then.get("precision", "not recorded")  # by an earlier version
    if was != now["precision"]:
        found[f"precision {was}, now {now['precision']}"] = None
    for was, here in zip(then["groups"], now["groups"], strict=False):
        for name in differing(was, here):
            acts = schedule_can_change or name != "lr"
            kept = "" if acts else f" (which does not act: {now['scheduler']} has a rate of its own)"
            found[f"{name} {was[name]}, now {here[name]}{kept}"] = None
    if then.get("scheduler", now["scheduler"]) != now["scheduler"]:
        found[f"scheduler {then['scheduler']}, now {now['scheduler']}"] = None
    elif "schedule" in then:
        was, here = then["schedule"], now["schedule"]
        for name in differing(was, here):
            if name not in (*PLACE, "base_lrs"):
                found[f"{name} {was[name]}, now {here[name]}"] = None
    return [*found]


def differing(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Names of both with another value in each; what only one of two versions of torch knows has none."""
    return [name for name in now if name in then and then[name] != now[name]]


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """As another process would have it too: a function is the name of its type."""

    def told(value: Any) -> Any:
        return value.tolist() if isinstance(value, Tensor) else type(value).__name__

    return json.loads(json.dumps(values, default=told))
