"""Distil Vision Transformers, and watch why the transfer works or fails."""

from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distill_dynamics.errors import UserError
    from distill_dynamics.models.backbone import Backbone
    from distill_dynamics.models.features import Features
    from distill_dynamics.train.distiller import Distiller
    from distill_dynamics.train.terms import Term

# Loaded when they are asked for: losses and measures need torch alone.
_MODULES = {
    "Backbone": "models.backbone",
    "Distiller": "train.distiller",
    "Features": "models.features",
    "Term": "train.terms",
    "UserError": "errors",
}

_ROOMS = ("callbacks", "data", "dynamics", "losses", "schedule")

__all__ = [
    "Backbone",
    "Distiller",
    "Features",
    "Term",
    "UserError",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return metadata.version(__name__)
    if name in _ROOMS:
        return import_module(f"{__name__}.{name}")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_ROOMS})
