"""When to probe, where to write, what to print."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distill_dynamics.callbacks.conflict import GradientConflict as GradientConflict
    from distill_dynamics.callbacks.console import Console as Console
    from distill_dynamics.callbacks.console import ProgressBar as ProgressBar
    from distill_dynamics.callbacks.ema import EMA as EMA
    from distill_dynamics.callbacks.probe import DynamicsProbe as DynamicsProbe
    from distill_dynamics.callbacks.record import RunRecord as RunRecord

_HOMES = {
    "Console": "distill_dynamics.callbacks.console",
    "DynamicsProbe": "distill_dynamics.callbacks.probe",
    "EMA": "distill_dynamics.callbacks.ema",
    "GradientConflict": "distill_dynamics.callbacks.conflict",
    "ProgressBar": "distill_dynamics.callbacks.console",
    "RunRecord": "distill_dynamics.callbacks.record",
}
"""Each name by the module that has it, which is imported when the name is first used."""

__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
