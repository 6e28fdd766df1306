"""The commands that run a Trainer: fit, validate, test, predict; one YAML an experiment."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from types import NoneType
from typing import Any, get_args

from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from distill_dynamics import callbacks, data, losses, models
from distill_dynamics.callbacks import Console, DynamicsProbe, ProgressBar, RunRecord
from distill_dynamics.callbacks.console import on_terminal, shows_bars
from distill_dynamics.cli.checks import check_name, check_trainer, import_all, refuse_functions, stem_of
from distill_dynamics.cli.datamodule import set_num_classes
from distill_dynamics.cli.errors import line_of
from distill_dynamics.cli.fit_summary import end
from distill_dynamics.cli.help import COMPARISON, PARSER_KWARGS, NoKey, describe
from distill_dynamics.cli.parser import OneLineParser
from distill_dynamics.cli.predictions import predict
from distill_dynamics.cli.resume import find_checkpoint, of_these_devices
from distill_dynamics.cli.save_config import SaveConfig
from distill_dynamics.cli.sweep import sweep_group, sweep_name
from distill_dynamics.cli.wandb_run import WANDB_TIMEOUT_S, Wandb, wandb_loggers
from distill_dynamics.cluster.end_processes import EndOtherProcesses
from distill_dynamics.cluster.preemption import Preemption
from distill_dynamics.cluster.ranks import end_others, watch_others
from distill_dynamics.cluster.stop_at_once import stopped_at_once
from distill_dynamics.cluster.wandb_end import UPLOAD_S, close_wandb
from distill_dynamics.data import ImageData
from distill_dynamics.errors import UserError
from distill_dynamics.runs import directory as run
from distill_dynamics.runs import lease
from distill_dynamics.signals import Preempted
from distill_dynamics.train.checkpoints import AtomicCheckpointIO, best_by, checkpoint_callbacks
from distill_dynamics.train.distiller import Distiller
from distill_dynamics.train.rank import is_first_rank
from distill_dynamics.train.run_logger import RunLogger


class TrainerParser(OneLineParser, LightningArgumentParser):
    """LightningCLI's parser, with errors of one line."""


class DistillCLI(LightningCLI):
    """LightningCLI with run directories, checkpoints, probing and W&B in place."""

    hidden: Collection[str] = ()
    """Options that the help leaves out."""
    bars_on_terminals_alone = True
    when_stopped = "stopped: nothing was written"
    """What is said where a signal ends another command than `fit`."""

    def __init__(self, model_class: type[Distiller] = Distiller, **kwargs: Any) -> None:
        self.run_dir: Path | None = None
        self.new_run = False  # whether this process made run_dir
        self._newest = False  # whether to go on from the newest checkpoint, not from one that was named
        self._record: RunRecord | None = None
        self._preemption = Preemption()
        self._words: Sequence[str] = kwargs.get("args") or ()
        try:
            super().__init__(
                model_class,
                ImageData,
                subclass_mode_data=True,
                seed_everything_default=0,
                save_config_callback=SaveConfig,
                trainer_defaults={
                    "max_epochs": 300,
                    "enable_model_summary": False,  # Console prints a better one
                    "num_sanity_val_steps": 0,  # the teacher has just been through the validation set
                    "use_distributed_sampler": False,  # the DataModules share out images themselves
                },
                auto_configure_optimizers=False,
                parser_class=TrainerParser,
                **{"parser_kwargs": PARSER_KWARGS, **kwargs},
            )
        except BaseException as error:
            self._explain(error)
            raise

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """The one that is asked for alone: a parser takes as long as reading a config does."""
        every = LightningCLI.subcommands()
        return {name: every[name] for name in self._words[:1] if name in every} or every

    def setup_parser(self, add_subcommands: bool, main_kwargs: Any, subparser_kwargs: Any) -> None:
        """Lightning's parsers, their help told for this program."""
        import_all(callbacks, data, losses, models)
        for other in LightningCLI.subcommands().keys() - self.subcommands().keys():
            main_kwargs.pop(other, None)
        super().setup_parser(add_subcommands, main_kwargs, subparser_kwargs)
        for option, text in COMPARISON.items() if "fit" in self._subcommand_parsers else ():
            value: dict[str, Any] = {"nargs": 0} if option == "--baselines" else {"metavar": "N"}
            self._subcommand_parsers["fit"].add_argument(option, action=NoKey, help=text, **value)
        for parser in self._subcommand_parsers.values():
            for action in parser._actions:
                # typing may give Optional[Union[int, float]] as Optional[Union[float, int]], if that was made
                # before: one batch, limit_val_batches: 1, would be read as 1.0, all of them.
                kinds = [*get_args(getattr(action, "_typehint", None))]
                if int in kinds and float in kinds and all(kind in (int, float, NoneType) for kind in kinds):
                    known: Any = int | float | None if NoneType in kinds else int | float
                    action._typehint = known  # type: ignore[attr-defined]
        describe(self._subcommand_parsers, self.hidden)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add what belongs to the run and not to one of its parts."""
        parser.add_argument("--name", type=str | None, help="run directory (default: config's name, counter)")
        parser.add_argument("--runs_dir", type=str, default="runs", help="folder of the run directories")
        parser.add_argument(
            "--checkpoint_every_n_epochs",
            type=int,
            default=30,
            help="keep a checkpoint (epoch_0030.ckpt) every so often, beside last.ckpt and best.ckpt",
        )
        parser.add_argument(
            "--predictions", type=str, default="predictions.csv", help="file that predict writes"
        )
        parser.add_argument("--images", type=str | None, help="folder of images (default: for validation)")
        parser.add_lightning_class_args(DynamicsProbe, "probe")
        parser.add_class_arguments(Wandb, "wandb")

    def _parse_ckpt_path(self) -> None:
        """No hyperparameters are taken from checkpoints: the configuration is the run's config.yaml."""

    def before_instantiate_classes(self) -> None:
        """Find the checkpoint that is meant, before any work is done."""
        config = self.config[self.subcommand]
        if self.subcommand == "fit":
            if config.name is None and config.ckpt_path in (None, "auto"):
                config.name = sweep_name(stem_of(config))
            check_name(config.name)
        check_trainer(config.trainer)
        refuse_functions(config)
        config.weights_only = True
        self._newest = self.subcommand == "fit" and config.ckpt_path in ("auto", "last")
        self.run_dir, config.ckpt_path = find_checkpoint(config, self.subcommand)
        set_num_classes(config)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make the Trainer; for `fit` with a run directory, its files and W&B."""
        given = _as_list(self.config_init[self.subcommand].trainer.callbacks)
        if self.bars_on_terminals_alone and not shows_bars(given):
            kwargs["enable_progress_bar"] = False
        if self.subcommand != "fit":
            made = super().instantiate_trainer(**kwargs, logger=False, enable_checkpointing=False)
            watch_others(made, lambda error: None)
            return made
        config, settings = self.config.fit, self.config_init.fit
        stem = stem_of(config)
        run_dir = self.run_dir = self._take_run_dir(config, stem)
        config.wandb.group = settings.wandb.group = settings.wandb.group or sweep_group(stem)
        config.name = run_dir.name
        loggers: list[Logger] = [RunLogger(run_dir)]
        loggers += [logger for logger in _as_list(settings.trainer.logger) if isinstance(logger, Logger)]
        if settings.trainer.logger is not False:
            loggers += wandb_loggers(settings.wandb, run_dir)
        self.trainer_defaults["callbacks"] = [
            Console(),
            *([ProgressBar()] if settings.trainer.enable_progress_bar is not False and on_terminal() else []),
            *checkpoint_callbacks(run_dir, config.checkpoint_every_n_epochs, best_by(settings.data)),
            self._preemption,
        ]
        self._record = RunRecord()
        made = super().instantiate_trainer(
            **kwargs,
            # First of all, the record: it tells the loggers from where the run is continued.
            callbacks=[EndOtherProcesses(), self._record, *_as_list(settings.trainer.callbacks)],
            logger=loggers,
            default_root_dir=run_dir,
        )
        first = EndOtherProcesses, RunRecord, SaveConfig
        _callbacks_of(made).sort(key=lambda callback: not isinstance(callback, first))
        watch_others(made, partial(self._record_failure, made, self._record))
        if type(made.strategy.checkpoint_io) is TorchCheckpointIO:  # else a plugin's, asked for in the config
            made.strategy.checkpoint_io = AtomicCheckpointIO()
        return made

    def _take_run_dir(self, config: Any, stem: str) -> Path:
        """Make the run's directory, or take up the one that is there, and hold it."""
        if not is_first_rank():  # these write nothing; where the first one does is broadcast to them
            return self.run_dir or Path(config.runs_dir)
        if self.run_dir is None:
            self.new_run = True
            self.run_dir = run.claim(config.runs_dir, config.name, stem)
            lease.hold(self.run_dir)
        else:
            lease.hold(self.run_dir)
            run.take_up(self.run_dir)
        return self.run_dir

    def _record_failure(self, trainer: Trainer, written: RunRecord, error: Exception) -> None:
        written.on_exception(trainer, self.model, error)
        if not written.stepped:
            self._leave_nothing()
        close_wandb(2 if isinstance(error, UserError) else 1, UPLOAD_S)
        lease.release()

    def _run_subcommand(self, subcommand: str) -> None:
        is_fit = subcommand == "fit"  # which stops between two steps
        with nullcontext() if is_fit else stopped_at_once(self.trainer, self.when_stopped):
            super()._run_subcommand(subcommand)

    def before_fit(self) -> None:
        """Repeat an epoch that was begun on other devices: which images are left of it depends on them."""
        config = self.config_init.fit
        if self._newest:
            config.ckpt_path = of_these_devices(config.ckpt_path, self.trainer)

    def after_fit(self) -> None:
        """What came of it, once the run has its end."""
        if self.trainer.is_global_zero:
            with self._preemption.signals_ignored():
                end(Path(self.trainer.default_root_dir), self.model)

    def _set_seed(self) -> None:
        try:
            super()._set_seed()
        except ValueError as error:
            raise UserError(f"seed_everything: {error}") from error

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        try:
            return super()._instantiate_trainer(config, callbacks)
        except (ValueError, TypeError, MisconfigurationException) as error:
            raise UserError(f"trainer: {error}") from error

    def _explain(self, error: BaseException) -> None:
        """Make a line of what goes wrong before the first step, and leave nothing of the start.

        What goes wrong later, or in another command than `fit` once it runs, is left as it is.
        """
        if self._record is None and hasattr(self, "trainer"):
            return
        if self._record is not None and self._record.stepped:
            if isinstance(error, OSError):
                lease.check()  # that the directory is gone says more
            return
        if isinstance(error, Preempted):
            return  # it is to be continued
        self._leave_nothing()
        if isinstance(error, KeyboardInterrupt) or isinstance(error.__context__, KeyboardInterrupt):
            end_others()
            print("error: stopped before the first step", file=sys.stderr)
            raise SystemExit(130) from None
        if isinstance(error, Exception):
            raise UserError(line_of(error)) from error

    def validate(self, model: Distiller, datamodule: ImageData, **kwargs: Any) -> None:
        """Print what the validation images say of the student, and of its teacher."""
        self._print(self.trainer.validate(model, datamodule=datamodule, **{**kwargs, "verbose": False}))

    def test(self, model: Distiller, datamodule: ImageData, **kwargs: Any) -> None:
        """The same of the test images."""
        self._print(self.trainer.test(model, datamodule=datamodule, **{**kwargs, "verbose": False}))

    def _print(self, results: Sequence[Mapping[str, float]]) -> None:
        rows = [(name, f"{value:.4f}") for name, value in results[0].items()] if results else []
        if self.trainer.is_global_zero:
            width = max(14, *(len(name) for name, _ in rows), 0)
            print("\n" + "\n".join(f"  {name:<{width}} {value:>9}" for name, value in rows) + "\n")

    def _leave_nothing(self) -> None:
        """Take back what this start has put into its run directory; the directory, if it made that."""
        with suppress(OSError):
            if self.run_dir is None or not is_first_rank() or not lease.holds(self.run_dir):
                return
            if self.new_run:
                close_wandb(2, WANDB_TIMEOUT_S)  # it would write on
                shutil.rmtree(self.run_dir)
            for callback in _callbacks_of(self.trainer) if hasattr(self, "trainer") else []:
                if isinstance(callback, SaveConfig) and callback.written is not None:
                    callback.written.unlink(missing_ok=True)

    def predict(self, model: Distiller, datamodule: ImageData, **kwargs: Any) -> None:
        """Write the student's answer for each validation image, or each of `--images`, to `--predictions`."""
        predict(self.trainer, model, datamodule, self.config.predict, **kwargs)


def _callbacks_of(trainer: Trainer) -> list[Callback]:
    """Those of a Trainer, which has them without declaring it."""
    return getattr(trainer, "callbacks")  # noqa: B009 (for mypy)


def _as_list(given: Any) -> list[Any]:
    return given if isinstance(given, list) else [] if given is None else [given]
