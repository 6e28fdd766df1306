"""Distil Vision Transformers, and watch why the transfer works or fails."""

from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distill_dynamics import callbacks as callbacks
    from distill_dynamics import data as data
    from distill_dynamics import dynamics as dynamics
    from distill_dynamics import losses as losses
    from distill_dynamics import schedule as schedule
    from distill_dynamics.errors import UserError as UserError
    from distill_dynamics.models.backbone import Backbone as Backbone
    from distill_dynamics.models.backbone import Features as Features
    from distill_dynamics.train.distiller import Distiller as Distiller
    from distill_dynamics.train.distiller import Term as Term

_HOMES = {
    "Backbone": "distill_dynamics.models.backbone",
    "Distiller": "distill_dynamics.train.distiller",
    "Features": "distill_dynamics.models.backbone",
    "Term": "distill_dynamics.train.distiller",
    "UserError": "distill_dynamics.errors",
}
"""Each name by the module that has it, which is imported when the name is first used."""

_ROOMS = ("callbacks", "data", "dynamics", "losses", "schedule")

__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return metadata.version(__name__)
    if name in _ROOMS:
        return import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_ROOMS})
