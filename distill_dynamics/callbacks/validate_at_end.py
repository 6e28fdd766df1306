"""What a row, best.ckpt and the exported student say is measured on the weights of an epoch's end."""

from __future__ import annotations

import math
from typing import Any

from lightning.pytorch import Callback, Trainer


class ValidateAtEnd(Callback):
    """Has Lightning validate at the end of an epoch, whatever `val_check_interval` says."""

    def __init__(self) -> None:
        self._check_batch: Any = None  # Lightning's, between two epochs

    def on_train_start(self, trainer: Trainer, *args: Any) -> None:
        """Know it in an epoch that is continued in its middle, of which Lightning calls no start."""
        if trainer.fit_loop.restarted_mid_epoch:
            self._check_batch = trainer.val_check_batch

    def on_train_epoch_start(self, trainer: Trainer, *args: Any) -> None:
        """Put Lightning's own back."""
        if self._check_batch is not None:
            trainer.val_check_batch = self._check_batch
        self._check_batch = trainer.val_check_batch

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        """Have the last batch be one to validate after."""
        if trainer.is_last_batch:
            trainer.val_check_batch = 1
            trainer._last_val_time = -math.inf
