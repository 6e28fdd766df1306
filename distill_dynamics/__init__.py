"""Distil Vision Transformers, and watch why the transfer works or fails."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from distill_dynamics.lazy import attach

if TYPE_CHECKING:
    from distill_dynamics.errors import UserError
    from distill_dynamics.models.backbone import Backbone
    from distill_dynamics.models.features import Features
    from distill_dynamics.train.distiller import Distiller
    from distill_dynamics.train.teachers import TeacherSettings
    from distill_dynamics.train.terms import Term

__version__ = "0.2.0.dev0"

_HOMES = {
    "Backbone": "models.backbone",
    "Distiller": "train.distiller",
    "Features": "models.features",
    "TeacherSettings": "train.teachers",
    "Term": "train.terms",
    "UserError": "errors",
}
_ROOMS = ("callbacks", "data", "dynamics", "losses", "schedule")
__all__ = [*_HOMES, "__version__"]
_attribute, _ = attach(__name__, _HOMES)


def __getattr__(name: str) -> Any:
    return import_module(f"{__name__}.{name}") if name in _ROOMS else _attribute(name)


def __dir__() -> list[str]:
    return [*__all__, *_ROOMS]
