"""The command line: fit, validate, test, predict; one YAML an experiment. The other commands: commands.py."""

from __future__ import annotations

import csv
import logging
import shutil
import sys
import warnings
from argparse import SUPPRESS
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import wandb
import yaml
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_only, rank_zero_warn

from distill_dynamics import commands
from distill_dynamics.callbacks import Console, DynamicsProbe, Preemption, ProgressBar, RunRecord
from distill_dynamics.cli_errors import OneLineParser, line_of, told_in_one_line
from distill_dynamics.cli_help import CACHE_TEACHER, NOT_FOR_CACHE_TEACHER, PARSER_KWARGS, describe
from distill_dynamics.cli_output import output_may_close
from distill_dynamics.cli_start import (
    check_name,
    check_trainer,
    drop_empty_variables,
    refuse_functions,
    wandb_mode,
)
from distill_dynamics.cluster.preemption import Preempted
from distill_dynamics.cluster.ranks import end_others, failing_as_one, is_first_rank, watch_others
from distill_dynamics.cluster.wandb_end import UPLOAD_S, close_wandb, wandb_closed_in_time
from distill_dynamics.cluster.wandb_steps import next_step
from distill_dynamics.data import ImageData
from distill_dynamics.errors import UserError, first_line
from distill_dynamics.files import whole
from distill_dynamics.runs import directory as run
from distill_dynamics.runs import lease
from distill_dynamics.runs.metrics_csv import RunLogger
from distill_dynamics.teacher_cache.build import CacheBuilder, CacheVerifier
from distill_dynamics.train.checkpoints import PREEMPTED, WholeCheckpointIO, newest_whole, read_whole
from distill_dynamics.train.distiller import Distiller


@dataclass
class Wandb:
    """Where W&B's record of the run goes.

    Args:
        mode: "offline" writes into the run directory and needs no account and no network (`wandb sync`
            uploads it later), "online" uploads while training, "disabled" writes nothing. Left out,
            the environment variable WANDB_MODE decides, and else it is offline.
        project: W&B project.
        entity: W&B user or team.
        group: groups runs on the dashboard, the seeds of one method for one; the config's name if left out.
        tags: labels on the dashboard.
    """

    mode: Literal["offline", "online", "disabled"] | None = None
    project: str = "distill_dynamics"
    entity: str | None = None
    group: str | None = None
    tags: list[str] | None = None


class SaveConfig(SaveConfigCallback):
    """Saves the configuration as config.yaml; that of a continued run beside it, if it differs."""

    written: Path | None = None

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Nothing yet: a checkpoint that does not fit the configuration is still to be refused."""

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Write it on the first rank, when all that may be refused has been looked at."""
        if not trainer.is_global_zero:
            return
        config = self.config.clone()
        config.ckpt_path = None  # that of one start, and no part of the experiment
        text = self.parser.dump(config, skip_none=False)
        for logger in trainer.loggers:
            logger.log_hyperparams(yaml.safe_load(text))
        folder = Path(trainer.default_root_dir)
        path, number = folder / "config.yaml", 1
        while path.exists():
            if path.read_text() == text:
                return
            number += 1
            path = folder / f"config_{number}.yaml"
        run.write_whole(path, text)
        self.written = path


class DistillCLI(LightningCLI):
    """LightningCLI with run directories, checkpoints, probing and W&B in place."""

    def __init__(self, model_class: type[Distiller] = Distiller, **kwargs: Any) -> None:
        self.run_dir: Path | None = None
        self.new_run = False  # whether this process made run_dir
        self._newest = False  # whether to go on from the newest checkpoint, not from one that was named
        self._record: RunRecord | None = None
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
            parser_class=OneLineParser,
            **{"parser_kwargs": PARSER_KWARGS, **kwargs},
        )

    def setup_parser(self, *args: Any) -> None:
        """Lightning's parsers, their help told for this program."""
        super().setup_parser(*args)
        cache_teacher = OneLineParser(add_help=False)  # to be listed: CacheTeacherCLI has its own
        others = {**commands.parsers(), "cache-teacher": cache_teacher}
        describe(self.parser, self._subcommand_parsers, others)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add what belongs to the run and not to one of its parts."""
        parser.add_argument(
            "--name",
            type=str | None,
            default=None,
            help="run directory; the config's name and a counter if left out",
        )
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
        parser.add_lightning_class_args(DynamicsProbe, "probe")
        parser.add_class_arguments(Wandb, "wandb")

    def _parse_ckpt_path(self) -> None:
        """No hyperparameters are taken from checkpoints: the configuration is the run's config.yaml."""

    def before_instantiate_classes(self) -> None:
        """Find the checkpoint that is meant, before any work is done."""
        config = self.config[self.subcommand]
        if self.subcommand == "fit":
            check_name(config.name)
        check_trainer(config.trainer)
        refuse_functions(config)
        config.weights_only = True
        given = config.ckpt_path
        if given is None:
            return
        if given == "auto" and self.subcommand != "fit":
            raise UserError("--ckpt_path auto is for fit, which may have to begin: give last, best or a file")
        if given in ("auto", "last", "best"):
            run_dir = self._given_run_dir(config)
            path = run_dir / "checkpoints" / f"{given}.ckpt"
            if given == "auto":
                # The other ranks look only for checkpoints, which the first one cannot write without them.
                if run_dir.exists() or not is_first_rank():
                    self.run_dir = run_dir
            else:
                self.run_dir = run_dir
                if given == "best" and not path.is_file():
                    raise UserError(f"--ckpt_path {given}: there is no {path}; give the --config of a run")
            if given != "best":
                # Others than fit want one that the record tells of.
                self._newest = self.subcommand == "fit"
                newest = newest_whole(run_dir, begun=self._newest)
                if given == "last" and newest is None:
                    raise UserError(
                        f"--ckpt_path last: there is no whole checkpoint in {path.parent}; "
                        "give the --config of a run"
                    )
                config.ckpt_path = None if newest is None else str(newest)
                return
        else:
            path = Path(given)
            if not path.is_file():
                raise UserError(f"--ckpt_path: no such file: {given} (or say auto, last or best)")
            of_run = path.resolve().parents[1]
            if (
                self.subcommand == "fit"
                and config.name == of_run.name
                and self._given_run_dir(config).resolve() == of_run
            ):
                self.run_dir = self._given_run_dir(config)  # else a new run begins from it
        read_whole(path)
        config.ckpt_path = str(path)

    def _given_run_dir(self, config: Any) -> Path:
        """The directory of the run whose config.yaml was given, wherever it has been moved to."""
        for path in reversed(config.config or []):
            path = Path(str(path))
            if path.name.startswith("config") and (path.parent / "run.json").is_file():
                return path.parent
        if config.name is None:
            raise UserError(
                f"--ckpt_path {config.ckpt_path} needs to know the run: "
                "give --name, or --config RUN/config.yaml"
            )
        return Path(config.runs_dir) / config.name

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make the Trainer; for `fit` with a run directory, its files and W&B."""
        if self.subcommand != "fit":
            made = super().instantiate_trainer(**kwargs, logger=False, enable_checkpointing=False)
            watch_others(made, lambda error: None)
            return made
        config, trainer = self.config.fit, self.config_init.fit.trainer
        stem = Path(str(config.config[-1])).stem if config.config else "run"
        if self.run_dir is None:
            # The other ranks write nothing; what they need to know of the directory is broadcast to them.
            self.new_run = is_first_rank()
            self.run_dir = (
                run.claim(config.runs_dir, config.name, stem) if self.new_run else Path(config.runs_dir)
            )
            if self.new_run:
                lease.hold(self.run_dir)
        elif is_first_rank():
            lease.hold(self.run_dir)
            run.take_up(self.run_dir)
        wandb_settings = self.config_init.fit.wandb
        config.wandb.group = wandb_settings.group = wandb_settings.group or stem
        config.name = self.run_dir.name
        given = trainer.logger
        loggers: list[Logger] = [RunLogger(self.run_dir)]
        loggers += given if isinstance(given, list) else [given] if isinstance(given, Logger) else []
        if given is not False:
            loggers += _wandb_loggers(self.config_init.fit.wandb, self.run_dir)
        checkpoint = partial(
            ModelCheckpoint, dirpath=self.run_dir / "checkpoints", save_on_train_epoch_end=True
        )
        callbacks = trainer.callbacks or []
        self.trainer_defaults["callbacks"] = [
            Console(),
            *([] if trainer.enable_progress_bar is False else [ProgressBar()]),
            # The best first and the last last: each holds what those before it have made of the epoch.
            checkpoint(filename="best", monitor="val/acc1", mode="max", enable_version_counter=False),
            checkpoint(
                filename="epoch_{epoch:04.0f}",
                auto_insert_metric_name=False,
                save_top_k=-1,
                every_n_epochs=config.checkpoint_every_n_epochs,
                enable_version_counter=False,
            ),
            # Lightning tells callbacks apart by their settings: the mode, unused here, makes this one another
            # than the one before, where that is to keep every epoch.
            checkpoint(filename="last", mode="max", every_n_epochs=1, enable_version_counter=False),
            Preemption(),
        ]
        self._record = RunRecord()
        made = super().instantiate_trainer(
            **kwargs,
            # First of all: it tells the loggers from where the run is continued.
            callbacks=[self._record, *(callbacks if isinstance(callbacks, list) else [callbacks])],
            logger=loggers,
            default_root_dir=self.run_dir,
        )
        _callbacks_of(made).sort(key=lambda callback: not isinstance(callback, RunRecord | SaveConfig))
        watch_others(made, partial(self._record_failure, made, self._record))
        if type(made.strategy.checkpoint_io) is TorchCheckpointIO:  # else a plugin's, asked for in the config
            made.strategy.checkpoint_io = WholeCheckpointIO()
        return made

    def _record_failure(self, trainer: Trainer, written: RunRecord, error: Exception) -> None:
        written.on_exception(trainer, self.model, error)
        if not written.stepped:
            self._leave_nothing()
        close_wandb(2 if isinstance(error, UserError) else 1, UPLOAD_S)
        lease.release()

    def before_fit(self) -> None:
        """Repeat an epoch that was begun on other devices: which images are left of it depends on them."""
        config = self.config_init.fit
        if not self._newest or Path(config.ckpt_path or "").name != PREEMPTED:
            return
        path, trainer = Path(config.ckpt_path), self.trainer
        content = read_whole(path)
        was = content["distill_dynamics"]["begun_epoch"]["layout"]
        now = {"devices": trainer.world_size, "nodes": trainer.num_nodes}
        now = {name: number for name, number in now.items() if name in was}
        if was == was | now:
            return
        end = newest_whole(path.parents[1], begun=False)
        config.ckpt_path = None if end is None else str(end)
        if is_first_rank():
            print(
                f"{path} is of the middle of epoch {content['epoch'] + 1}, begun on {_told(was)}; "
                f"on {_told(now)} that epoch is made anew, from {end or 'the start of the run'}",
                file=sys.stderr,
            )

    def parse_arguments(self, *args: Any, **kwargs: Any) -> None:
        """Lightning's; what a module raises that is imported for a class is a line."""
        with self._until_the_first_step():
            super().parse_arguments(*args, **kwargs)

    def _set_seed(self) -> None:
        try:
            super()._set_seed()
        except ValueError as error:
            raise UserError(f"seed_everything: {error}") from error

    def instantiate_classes(self) -> None:
        """Lightning's; what a class raises is a line."""
        with self._until_the_first_step():
            super().instantiate_classes()

    def _run_subcommand(self, subcommand: str) -> None:
        """Run it; Lightning's, but for what keeps a training from its first step."""
        if subcommand != "fit":
            super()._run_subcommand(subcommand)
            return
        with self._until_the_first_step():
            super()._run_subcommand(subcommand)

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        try:
            return super()._instantiate_trainer(config, callbacks)
        except (ValueError, TypeError, MisconfigurationException) as error:
            raise UserError(f"trainer: {error}") from error

    @contextmanager
    def _until_the_first_step(self) -> Iterator[None]:
        """What goes wrong before the first step is a line, and nothing is left of the start."""
        try:
            yield
        except BaseException as error:
            if self._record is not None and self._record.stepped:
                if isinstance(error, OSError):
                    lease.check()  # that the directory is gone says more
                raise
            if isinstance(error, Preempted):
                raise  # it is to be continued
            self._leave_nothing()
            if isinstance(error, KeyboardInterrupt) or isinstance(error.__context__, KeyboardInterrupt):
                end_others()
                print("error: stopped before the first step", file=sys.stderr)
                raise SystemExit(130) from None
            if isinstance(error, Exception):
                raise UserError(line_of(error)) from error
            raise

    def validate(self, model: Distiller, datamodule: ImageData, **kwargs: Any) -> None:
        """Print what the validation images say of the student, and of its teacher."""
        self._print(self.trainer.validate(model, datamodule=datamodule, **{**kwargs, "verbose": False}))

    def test(self, model: Distiller, datamodule: ImageData, **kwargs: Any) -> None:
        """The same of the test images."""
        self._print(self.trainer.test(model, datamodule=datamodule, **{**kwargs, "verbose": False}))

    def _print(self, results: Sequence[Mapping[str, float]]) -> None:
        rows = [(name, f"{value:.4f}") for name, value in results[0].items()] if results else []
        if self.trainer.is_global_zero:
            print("\n" + "\n".join(f"  {name:<14} {value:>9}" for name, value in rows) + "\n")

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
        """Write the student's answer for each validation image to `--predictions`."""
        if self.trainer.world_size > 1:
            raise UserError("predict runs on one device: set --trainer.devices 1")
        path = Path(self.config.predict.predictions)
        with _written_at_the_end(
            path
        ) as file:  # opened before the work: that must not be lost to a wrong path
            batches: Any = self.trainer.predict(model, datamodule=datamodule, **kwargs)
            writer = csv.writer(file)
            writer.writerow(["image", "target", "prediction", "probability"])
            targets = torch.cat([targets for _, targets in batches]).tolist()
            rows = torch.cat([probabilities for probabilities, _ in batches])
            for image, (target, row) in enumerate(zip(targets, rows, strict=True)):
                names = [datamodule.classes[number] for number in (target, int(row.argmax()))]
                writer.writerow([image, *names, f"{row.max():.4f}"])
        print(f"{len(targets)} predictions in {path}")


def _callbacks_of(trainer: Trainer) -> list[Callback]:
    """Those of a Trainer, which has them without declaring it."""
    return getattr(trainer, "callbacks")  # noqa: B009 (for mypy)


@contextmanager
def _written_at_the_end(path: Path) -> Iterator[Any]:
    """A text file that takes the place of the one at `path` when the block ends, not after an error in it."""
    path = path.resolve()  # the file that a link leads to, not the link
    if path.exists() and not path.is_file():  # a pipe, /dev/stdout
        with path.open("w", newline="") as file:
            yield file
        return
    if not path.parent.is_dir():
        raise UserError(f"--predictions: there is no folder {path.parent}")
    with whole(path) as partial, partial.open("w", newline="") as file:
        yield file


class CacheTeacherCLI(DistillCLI):
    """`cache-teacher`: reads a config of `fit`, and shows the views of its training images to its teacher."""

    def __init__(self, args: list[str]) -> None:
        verify = "--verify" in args
        super().__init__(
            CacheVerifier if verify else CacheBuilder,
            args=["predict", *args],  # Lightning's command that only runs a model
            parser_kwargs={**PARSER_KWARGS, "predict": CACHE_TEACHER},
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Those of `fit`, so that its configs can be read, and its own."""
        super().add_arguments_to_parser(parser)
        parser.add_argument("--out", type=str, required=True, help="folder of the cache")
        parser.add_argument(
            "--top_k", type=int, default=100, help="classes kept of each answer; all where there are no more"
        )
        parser.add_argument(
            "--verify",
            action="store_true",
            help="write nothing: read the cache that is there against its checksums, and compute some views "
            "again",
        )

    def setup_parser(self, *args: Any) -> None:
        """Show only options that are of use."""
        super().setup_parser(*args)
        for action in self._subcommand_parsers["predict"]._actions:
            if action.dest in NOT_FOR_CACHE_TEACHER:
                action.help = SUPPRESS

    def before_instantiate_classes(self) -> None:
        """Let the config that is to train with the cache build it."""
        super().before_instantiate_classes()
        self.config.predict.model.teacher_cache = None

    def predict(self, model: Any, datamodule: ImageData, **kwargs: Any) -> None:
        """Build or verify."""
        model.folder, model.top_k = Path(self.config.predict.out).expanduser(), self.config.predict.top_k
        if model.top_k < 1:
            raise UserError(f"--top_k: {model.top_k} must be at least 1")
        bar: Any = self.trainer.progress_bar_callback
        model.shows_progress = bar is not None
        if bar is not None:
            bar.disable()  # of Lightning's batches, which these are not
        self.trainer.predict(model, datamodule=datamodule, return_predictions=False)


def _told(layout: dict[str, Any]) -> str:
    return f"{layout['devices']} devices" + (f" of {layout['nodes']} nodes" if "nodes" in layout else "")


WANDB_TIMEOUT_S = 30
"""How long W&B may take to begin an online run."""


class RunWandb(WandbLogger):
    """Lightning's, for a run that may last longer than the server: where it is not there, offline it is.

    What others log, through Lightning, has the epoch under way as its epoch: completed ones are counted.
    """

    epoch = 0

    def begin_epoch(self, epoch: int) -> None:
        """From here on what others log belongs to this epoch."""
        self.epoch = epoch

    @rank_zero_only
    def log_row(self, metrics: dict[str, Any], step: int) -> None:
        """Log what knows its epoch."""
        super().log_metrics(metrics, step=step)

    @rank_zero_only
    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """Log what others do."""
        super().log_metrics({**metrics, "epoch": self.epoch}, step=step)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """W&B's run, begun at the first call. UserError where W&B knows no account to write to."""
        begins = self._experiment is None
        first = next_step(Path(str(self.save_dir))) if begins else 0
        try:
            experiment = super().experiment
            if begins and first and self._wandb_init["mode"] == "offline":
                experiment.log({}, step=first)  # the next is logged with this step
            return experiment
        except (wandb.errors.UsageError, wandb.errors.AuthenticationError) as error:
            raise UserError(
                f"wandb.mode online: {first_line(error)} (or take --wandb.mode offline)"
            ) from error
        except wandb.errors.CommError as error:
            rank_zero_warn(
                f"W&B did not take the run up ({first_line(error)}): it is recorded offline; "
                f"`wandb sync {self.save_dir}/wandb/offline-run-*` uploads it later",
            )
        wandb.teardown()  # or the run's id would still be in use
        self._wandb_init["mode"] = "offline"
        return self.experiment


def _wandb_loggers(settings: Wandb, run_dir: Path) -> list[Logger]:
    mode = wandb_mode(settings.mode)
    if mode == "disabled" or not is_first_rank():
        return []
    logger = RunWandb(
        name=run_dir.name,
        save_dir=run_dir,
        id=run.identity(run_dir),
        resume="allow",
        project=settings.project,
        entity=settings.entity,
        group=settings.group,
        tags=settings.tags,
        mode=mode,
        settings=wandb.Settings(silent=mode == "offline", console="off", init_timeout=WANDB_TIMEOUT_S),
    )
    logger._wandb_init.pop("anonymous", None)  # Lightning passes it always, and W&B warns of it always
    return [logger]


NOISE = (
    ".*does not have many workers",
    ".*is smaller than the logging interval",  # our rows are epochs
    ".*but have no logger configured",  # outside fit the metrics are printed
    "predict returned None",  # cache-teacher writes what it has
    "Checkpoint directory .* exists and is not empty",  # a run that is continued
    ".*callbacks used to create the checkpoint need to be provided",  # not outside fit
    r".*isinstance\(treespec, LeafSpec\)",  # Lightning's use of torch
    "LightningCLI's args parameter is intended to run from within Python",
    "The `srun` command is available on your system",  # docker/slurm/fit.sbatch uses it
)
"""Warnings that tell the user of this program nothing."""


@contextmanager
def _short_warnings() -> Iterator[None]:
    """Python's warnings as a line each, without the place in the code, which says nothing to the user."""
    plain, warnings.formatwarning = warnings.formatwarning, lambda message, *_, **__: f"warning: {message}\n"
    try:
        yield
    finally:
        warnings.formatwarning = plain


def main(args: list[str] | None = None) -> None:
    """Run the command line (`args`, else sys.argv). A mistake of the user's is one line and exit status 2."""
    for message in NOISE:
        warnings.filterwarnings("ignore", message=message)
    for logger in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed"):
        logging.getLogger(logger).setLevel(logging.WARNING)
    words = sys.argv[1:] if args is None else args
    with (
        output_may_close(),
        _short_warnings(),
        lease.released(),
        wandb_closed_in_time(),
        failing_as_one(),
        told_in_one_line(),
    ):
        drop_empty_variables()
        if words and words[0] in commands.COMMANDS:
            commands.run(words)
        elif words and words[0] == "cache-teacher":
            CacheTeacherCLI(words[1:])
        else:
            DistillCLI(args=args)
