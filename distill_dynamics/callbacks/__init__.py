"""When to probe, where to write, what to print."""

from distill_dynamics.callbacks.conflict import GradientConflict
from distill_dynamics.callbacks.console import Console, ProgressBar
from distill_dynamics.callbacks.ema import EMA
from distill_dynamics.callbacks.probe import DynamicsProbe
from distill_dynamics.callbacks.record import RunRecord
from distill_dynamics.cluster.preemption import Preemption

__all__ = ["EMA", "Console", "DynamicsProbe", "GradientConflict", "Preemption", "ProgressBar", "RunRecord"]
