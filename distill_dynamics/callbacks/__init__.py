"""When to probe, where to write, what to print."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distill_dynamics.callbacks.conflict import GradientConflict
    from distill_dynamics.callbacks.console import Console, ProgressBar
    from distill_dynamics.callbacks.ema import EMA
    from distill_dynamics.callbacks.probe import DynamicsProbe
    from distill_dynamics.callbacks.record import RunRecord

# Loaded when they are asked for.
_MODULES = {
    "Console": "console",
    "DynamicsProbe": "probe",
    "EMA": "ema",
    "GradientConflict": "conflict",
    "ProgressBar": "console",
    "RunRecord": "record",
}

__all__ = [
    "EMA",
    "Console",
    "DynamicsProbe",
    "GradientConflict",
    "ProgressBar",
    "RunRecord",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
