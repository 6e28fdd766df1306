"""The epoch's row of metrics.csv: means over its steps, and what was validated at its end."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, Trainer
from torch import Tensor

from distill_dynamics.errors import UserError
from distill_dynamics.train.metrics import datamodule
from distill_dynamics.train.run_logger import log_row

if TYPE_CHECKING:
    from distill_dynamics.train.distiller import Distiller


class EpochRows(Callback):
    """Writes `train/*`, means over the epoch's steps and all ranks, and `val/*` where it was validated.

    A checkpoint that is saved within an epoch holds the sums so far. As order, augmentation and dropout are
    functions of where training is, a run that is continued there equals one that was not interrupted: to the
    bit on a CPU. Its loader skips what was seen (`ImageLoader.load_state_dict`); it takes the same `_layout`.
    """

    def __init__(self) -> None:
        self._sum: Tensor | None = None  # of the total and each part; None between epochs
        self._names: list[str] = []
        self._weights: dict[str, float] = {}  # sums of those that the config does not tell
        self._steps = self._images = 0
        self._seconds = 0.0  # of training, as far as the clock has been read
        self._clock = 0.0  # when it was started or read
        self._validated_at: int | None = None  # the step with whose weights val/* was measured
        self._begun: dict[str, Any] | None = None  # what a checkpoint says of the epoch it was saved in

    def on_train_start(self, trainer: Trainer, pl_module: Distiller) -> None:
        """Go on in a begun epoch."""
        if self._begun is None:
            return
        begun, self._begun = self._begun, None
        self._sum = begun["sums"][trainer.global_rank].to(pl_module.device)
        self._weights = dict(begun.get("weights", {}))
        self._steps, self._images = begun["steps"], begun["images"]
        self._seconds, self._clock = begun["seconds"], time.perf_counter()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Distiller) -> None:
        """Begin the sums."""
        self._sum, self._weights, self._steps, self._images = None, {}, 0, 0
        self._seconds, self._clock = 0.0, time.perf_counter()

    def on_before_backward(self, trainer: Trainer, pl_module: Distiller, loss: Tensor) -> None:
        """Add a step."""
        step = pl_module.latest
        self._names = step.names
        self._sum = step.values if self._sum is None else self._sum + step.values
        for name, weight in step.untold_weights.items():
            self._weights[name] = self._weights.get(name, 0.0) + weight
        self._steps += 1
        self._images += step.images

    def on_train_batch_end(self, trainer: Trainer, pl_module: Distiller, *args: Any) -> None:
        """Read the clock: what other callbacks do after the last batch, such as to probe, is no training."""
        self._read_clock()

    def on_validation_start(self, trainer: Trainer, pl_module: Distiller) -> None:
        """Stop the clock of `train/images_per_s`: validation is not training."""
        self._read_clock()

    def on_validation_end(self, trainer: Trainer, pl_module: Distiller) -> None:
        """Start it again."""
        self._clock = time.perf_counter()
        self._validated_at = trainer.global_step

    def _read_clock(self) -> None:
        now = time.perf_counter()
        self._seconds, self._clock = self._seconds + now - self._clock, now

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Distiller) -> None:
        """Write the row."""
        if self._sum is None:
            return  # no step was made
        means: Any = trainer.strategy.reduce(self._sum / self._steps, reduce_op="mean")
        names = ["train/loss", *(f"train/loss_{name}" for name in self._names)]
        row = dict(zip(names, means.tolist(), strict=True))
        row |= {f"train/weight_{name}": value / self._steps for name, value in self._weights.items()}
        validated = self._validated_at == trainer.global_step
        row["train/images_per_s"] = self._images * trainer.world_size / self._seconds
        row["train/lr"] = trainer.optimizers[0].param_groups[0]["lr"]
        metrics = {name: value.item() for name, value in trainer.callback_metrics.items()}
        if validated:
            row |= {name: value for name, value in metrics.items() if name.startswith("val/")}
        others = {name: value for name, value in metrics.items() if not name.startswith("val/")}
        pl_module.optimisation.end_epoch(others | row)
        epoch = trainer.current_epoch + 1
        self._sum = None  # what is saved from here on is no longer of this epoch
        # To every logger now: Lightning's own way comes after the checkpoint is saved.
        log_row(trainer.loggers, epoch, row, trainer.global_step)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if hasattr(callback, "on_epoch_row"):  # the console's: Lightning has no hook after this one
                callback.on_epoch_row(trainer, pl_module, row)
        pl_module.log("epoch", float(epoch), logger=False)  # names the checkpoint files

    def on_save_checkpoint(self, trainer: Trainer, pl_module: Distiller, checkpoint: dict[str, Any]) -> None:
        """Add what the epoch's row needs of the steps so far, and what must not change before the next."""
        begun = None
        if self._sum is not None:
            sums: Any = pl_module.all_gather(self._sum)
            begun = {
                "sums": sums.reshape(-1, len(self._sum)).cpu(),
                "weights": self._weights,
                "steps": self._steps,
                "images": self._images,
                "seconds": self._seconds + time.perf_counter() - self._clock,
                "layout": _layout(trainer, pl_module),
            }
        checkpoint.setdefault("distill_dynamics", {})["begun_epoch"] = begun

    def on_load_checkpoint(self, trainer: Trainer, pl_module: Distiller, checkpoint: dict[str, Any]) -> None:
        """Take the begun epoch. Raises UserError where that was begun with another `_layout`."""
        self._begun = checkpoint["distill_dynamics"].get("begun_epoch")
        if self._begun is None or trainer.state.fn != "fit":
            return
        was, now = self._begun["layout"], _layout(trainer, pl_module)
        was = {"terms": now["terms"], **was}  # a file of an earlier version does not tell
        both = {name: (was.get(name), now.get(name)) for name in was | now}
        others = [f"{name} {a}, now {b}" for name, (a, b) in both.items() if a != b]
        if others:
            raise UserError(
                f"ckpt_path: it was saved in the middle of epoch {checkpoint['epoch'] + 1}, with other "
                f"images left of it: {'; '.join(others)}. Give what it had, or go on from the end of an "
                "epoch (last.ckpt, epoch_*.ckpt)"
            )


def _layout(trainer: Trainer, distiller: Distiller) -> dict[str, Any]:
    """By name, what decides which images of an epoch are left after so many steps, and what was summed."""
    data = datamodule(trainer)
    return {
        "devices": trainer.world_size,
        "images a batch": data.batch_size,
        "batches a step": trainer.accumulate_grad_batches,
        "terms": ", ".join(distiller.terms),
        **getattr(data, "order_depends_on", dict)(),
    }
