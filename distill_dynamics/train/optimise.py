"""The optimiser and its learning rate: made from a config, and set by where training is."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from distill_dynamics.errors import UserError
from distill_dynamics.schedule import ProgressCosine, WarmupCosine
from distill_dynamics.train.checks import check_optimizer, checked
from distill_dynamics.train.progress import progress_at, steps_an_epoch
from distill_dynamics.train.rate_forecast import (
    MakeScheduler,
    Rates,
    check_plateau,
    rates_by_epoch,
    rates_by_step,
    rates_of_epochs,
    unknown_metric,
)
from distill_dynamics.train.settings import (
    PLACE,
    changes,
    check_settings,
    differing,
    options_of,
    settings_of,
)

MakeOptimizer = Callable[[Iterable], Optimizer]


def decay_groups(module: nn.Module, exempt: Iterable[str]) -> list[dict[str, Any]]:
    """Trained parameters in two groups: weight decay spares biases, norms and the names of `exempt`."""
    exempt = set(exempt)
    decay: list[nn.Parameter] = []
    no_decay: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            bare = parameter.ndim <= 1 or name.endswith(".bias") or name in exempt
            bare = bare or ".parametrizations." in name  # of what is computed from it, nothing is to decay
            (no_decay if bare else decay).append(parameter)
    return [{"params": decay}, {"params": no_decay, "weight_decay": 0.0}]


class Optimisation:
    """An optimiser with its schedule, for one call of `fit`.

    The rate is set at the beginning of an epoch (that of a `ProgressCosine`: of a step), and not at the end,
    where Lightning would: it saves the checkpoint before it steps, so that a resumed run would go on with the
    rate of the epoch before. A ReduceLROnPlateau takes its step at the end of the epoch that it judges,
    before the checkpoint is saved.

    Where a run goes on from a checkpoint, the settings of the config act and not those of the checkpoint, and
    a line says what has changed. What cannot act is refused.

    Args:
        make_optimizer: from parameter groups.
        groups: those.
        factor: the linear rule's, of every rate.
        make_scheduler: from the optimiser; None for a constant rate.
        trainer: whose epochs and steps the schedule goes through.
        saved: `saved_settings` of the checkpoint that the run goes on from, if it does.

    Raises:
        UserError: a setting that is none, a schedule that does not fit the trainer, an optimiser or a
            schedule that does not follow from the checkpoint's.
    """

    def __init__(
        self,
        make_optimizer: MakeOptimizer,
        groups: list[dict[str, Any]],
        factor: float,
        make_scheduler: MakeScheduler | None,
        trainer: Trainer,
        saved: dict[str, Any] | None = None,
    ) -> None:
        self.trainer = trainer
        self.optimizer = checked("optimizer", make_optimizer, groups)
        check_optimizer(self.optimizer)
        mixed = isinstance(trainer.precision_plugin, MixedPrecision)
        if mixed and trainer.gradient_clip_val and self.optimizer.defaults.get("fused"):
            raise UserError(
                "trainer.gradient_clip_val: in mixed precision, gradients cannot be clipped for a fused "
                "optimiser; set model.optimizer.init_args.fused: false"
            )
        for group in self.optimizer.param_groups:
            group["lr"] *= factor
        self._options = [options_of(group) for group in self.optimizer.param_groups]
        self._make_scheduler = make_scheduler
        self.scheduler = checked("scheduler", make_scheduler, self.optimizer) if make_scheduler else None
        self._lasts_as_trainer = isinstance(self.scheduler, WarmupCosine) and self.scheduler.epochs is None
        # Those whose rate is a function of where training is, and so may change on the way.
        self._pure = self.scheduler is None or isinstance(self.scheduler, WarmupCosine | ProgressCosine)
        self._state = {} if self.scheduler is None else dict(self.scheduler.state_dict())
        self.settings = settings_of(self.optimizer, self._options, self.scheduler, str(trainer.precision))
        """Plain values, for the checkpoint."""
        self._saved = saved
        self._check_schedule()
        if saved is not None:
            check_settings(saved, self.settings, self._pure)

    def for_lightning(self) -> Any:
        """What `configure_optimizers` returns; Lightning keeps the states and leaves the steps to us."""
        if self.scheduler is None:
            return self.optimizer
        return {
            "optimizer": self.optimizer,
            "lr_scheduler": {"scheduler": self.scheduler, "reduce_on_plateau": False},
        }

    def _check_schedule(self) -> None:
        trainer = self.trainer
        endless = trainer.max_epochs == -1 and trainer.max_steps == -1
        if endless and (self._lasts_as_trainer or isinstance(self.scheduler, ProgressCosine)):
            raise UserError(
                "trainer.max_epochs is -1, without end, and the learning rate's schedule needs one: give "
                "trainer.max_epochs or max_steps, or model.scheduler: null"
            )
        if isinstance(self.scheduler, ReduceLROnPlateau):
            check_plateau(self.scheduler, trainer)
        elif not self._pure and trainer.max_steps == -1:
            rates_of_epochs(self._make_scheduler, self._lrs(), max(trainer.max_epochs or 0, 1))

    # --- what the schedule comes to ---------------------------------------------------------------

    def rates(self) -> Rates | None:
        """Known once training begins; None where they depend on what it comes to."""
        if isinstance(self.scheduler, ReduceLROnPlateau):
            return None
        if isinstance(self.scheduler, ProgressCosine):
            return rates_by_step(self.scheduler, self._lrs()[0], self._epochs(), steps_an_epoch(self.trainer))
        return rates_by_epoch(self._make_scheduler, self._lrs(), self._epochs())

    def summary(self) -> str:
        """The optimiser and what becomes of its rate, in a line."""
        options, rates = self._options[0], self.rates()
        if rates is None:
            schedule: Any = self.scheduler
            rate = f"{options['lr']:.3g}, times {schedule.factor:g} where {schedule.monitor} stands still"
        elif rates.start == rates.peak == rates.end:
            rate = f"{rates.start:.3g} throughout"
        else:
            rate = (
                f"{rates.start:.3g} at the start, {rates.peak:.3g} at its peak (epoch {rates.peak_epoch}), "
                f"{rates.end:.3g} at the end"
            )
        decay = f", weight decay {options['weight_decay']:g}" if "weight_decay" in options else ""
        return f"{type(self.optimizer).__name__}, rate {rate}{decay}"

    def _lrs(self) -> list[float]:
        return [float(options["lr"]) for options in self._options]

    def _epochs(self) -> float:
        """How many the trainer makes; infinity where it has no end, or it is too early to know."""
        trainer = self.trainer
        epochs = math.inf if trainer.max_epochs in (-1, None) else float(trainer.max_epochs)
        if trainer.max_steps != -1 and math.isfinite(trainer.num_training_batches):
            epochs = min(epochs, trainer.max_steps / max(steps_an_epoch(self.trainer), 1))
        return epochs

    # --- while training ---------------------------------------------------------------------------

    def resume(self) -> None:
        """After Lightning has put the checkpoint's state in: let the config's settings act."""
        if self._saved is None:
            return
        changed = changes(self._saved, self.settings, self._pure)
        pairs = zip(self._saved["groups"], self.settings["groups"], strict=False)
        for group, options, (then, now) in zip(
            self.optimizer.param_groups, self._options, pairs, strict=False
        ):
            for name in options if self._pure else differing(then, now):
                if self._pure or name != "lr":
                    _set(group, name, options[name])
            if self._pure and self.scheduler is not None:
                _set(group, "initial_lr", options["lr"])
        if any(line.startswith(("fused", "capturable")) for line in changed):
            # On these it depends on which device torch keeps the count of steps.
            self.optimizer.load_state_dict(self.optimizer.state_dict())
        if self._pure and self.scheduler is not None:
            self.scheduler.__dict__.update({k: v for k, v in self._state.items() if k not in PLACE})
            self.begin_epoch()
        if changed:
            print_line(f"goes on with other settings than those of its checkpoint: {'; '.join(changed)}")

    def begin_epoch(self) -> None:
        """Set this epoch's rate, if it is one for an epoch."""
        scheduler, epoch = self.scheduler, self.trainer.current_epoch
        if isinstance(scheduler, WarmupCosine):
            if self._lasts_as_trainer:  # of this run, whatever max_epochs the checkpoint was made with
                scheduler.epochs = self._whole_epochs()
            scheduler.last_epoch = epoch - 1
            _step(scheduler)
        elif scheduler is None or isinstance(scheduler, ProgressCosine | ReduceLROnPlateau):
            return
        elif scheduler.last_epoch < epoch:
            _step(scheduler)

    def _whole_epochs(self) -> int:
        epochs = self._epochs()
        if not math.isfinite(epochs):
            raise UserError(
                "trainer.max_epochs is -1, and the data do not tell how many steps an epoch has: give the "
                "schedule its epochs, or max_epochs"
            )
        return max(math.ceil(epochs), 1)

    def begin_step(self, batch_idx: int) -> None:
        """Set the rate of the optimiser's step that this batch belongs to, if it is one for a step."""
        scheduler, trainer = self.scheduler, self.trainer
        if not isinstance(scheduler, ProgressCosine):
            return
        scheduler.progress = progress_at(trainer, batch_idx)
        scheduler.last_epoch = trainer.global_step - 1
        _step(scheduler)

    def end_epoch(self, metrics: Mapping[str, Any]) -> None:
        """Show a ReduceLROnPlateau what the epoch came to. UserError where its metric is not among that."""
        if not isinstance(self.scheduler, ReduceLROnPlateau):
            return
        monitor = self.scheduler.monitor  # type: ignore[attr-defined]
        if monitor in metrics:
            self.scheduler.step(metrics[monitor])
        elif not monitor.startswith("val/"):  # those are not measured in every epoch
            raise unknown_metric(monitor, metrics)


def _step(scheduler: LRScheduler) -> None:
    # Torch's count of steps follows from the place, as a run that goes on sets that again. And it is never 1,
    # where torch would have the optimiser's step first: here a rate is set before the steps that it is for.
    scheduler._step_count = scheduler.last_epoch + 3
    scheduler.step()


def _set(group: dict[str, Any], name: str, value: Any) -> None:
    if isinstance(group.get(name), Tensor):
        group[name].fill_(value)
    else:
        group[name] = value


@rank_zero_only
def print_line(line: str) -> None:
    """A line on stderr, of the first rank."""
    print(line, file=sys.stderr)
