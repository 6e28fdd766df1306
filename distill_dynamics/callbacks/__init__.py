"""When to probe, where to write, what to print."""

from typing import TYPE_CHECKING

from distill_dynamics.lazy import attach

if TYPE_CHECKING:
    from distill_dynamics.callbacks.conflict import GradientConflict
    from distill_dynamics.callbacks.console import Console, ProgressBar
    from distill_dynamics.callbacks.ema import EMA
    from distill_dynamics.callbacks.probe import DynamicsProbe
    from distill_dynamics.callbacks.record import RunRecord

_HOMES = {
    "EMA": "ema",
    "Console": "console",
    "DynamicsProbe": "probe",
    "GradientConflict": "conflict",
    "ProgressBar": "console",
    "RunRecord": "record",
}
__all__ = [*_HOMES]
__getattr__, __dir__ = attach(__name__, _HOMES)
