"""The processes that a run has started end with it."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer

from distill_dynamics.cluster.ranks import end_others
from distill_dynamics.signals import Preempted


class EndOtherProcesses(Callback):
    """Ends the other processes when the run fails. It comes before callbacks that write down the failure."""

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """End them, before they lose the connection to this process, and tell of that."""
        if not isinstance(exception, Preempted):
            end_others()
