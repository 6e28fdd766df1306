"""What is logged goes into the run's `metrics.csv`, in the row of its epoch."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only, rank_zero_warn

from distill_dynamics.runs.metrics_csv import PLACE, read_rows, write_rows
from distill_dynamics.train.wandb_rows import known_once, log_wandb_row


def log_row(loggers: Iterable[Any], epoch: int, metrics: Mapping[str, Any], step: int) -> None:
    """Log what belongs to the row of an epoch, to every logger."""
    for logger in loggers:
        row = {"epoch": epoch, **metrics}
        if isinstance(logger, WandbLogger):
            log_wandb_row(logger, row, step)
        else:
            getattr(logger, "log_row", logger.log_metrics)(row, step=step)


class RunLogger(Logger):
    """`metrics.csv` in the run directory: one row an epoch, columns as they come, values to the last bit.

    A row is this project's own (`log_row`): its epoch, its step, and the columns that it names. What others
    log, through Lightning, joins the row of the epoch under way or, after its end, that has ended: the last
    value in it. It makes no row, and changes none of the project's numbers.

    Lightning's CSVLogger deletes the file when a run goes on in its directory; this one continues it:
    see `continue_from`. Each write replaces the file in one step.
    """

    def __init__(self, run_dir: str | os.PathLike) -> None:
        super().__init__()
        self.run_dir = Path(run_dir)
        self.path = self.run_dir / "metrics.csv"
        self.epoch = 0
        """The epoch under way, by how many are completed at its end; 0 before the first."""
        self._rows: list[dict[str, Any]] = []
        self._own: set[str] = set()
        self._waiting: dict[str, Any] = {}  # what others have logged in an epoch that has no row yet

    @property
    def name(self) -> str:
        """The run's name."""
        return self.run_dir.name

    @property
    def version(self) -> str:
        """Empty: a run has no version folders."""
        return ""

    @property
    def log_dir(self) -> str:
        """The run directory."""
        return str(self.run_dir)

    save_dir = log_dir

    @rank_zero_only
    def continue_from(self, epoch: int) -> None:
        """Drop the rows of epochs after `epoch`: they are run again. A line tells what is missing before."""
        if not self.path.exists():
            return
        rows, broken = read_rows(self.path)
        self._rows = [dict(row) for row in rows if float(row["epoch"]) <= epoch]
        there = {float(row["epoch"]) for row in self._rows}
        missing = [number for number in range(1, epoch + 1) if number not in there]
        if broken or missing:
            of = f": it has no numbers of epoch {', '.join(map(str, missing))}" if missing else ""
            some = "1 row was" if broken == 1 else f"{broken} rows were"
            cut = f"{some} cut short or damaged, left out" if broken else "rows are gone"
            print(f"{self.path}: {cut}{of}", file=sys.stderr)
        self._write()

    def known_once(self) -> dict[str, float]:
        """What the rows say of the teacher, which a continued run does not measure again."""
        once = {n: v for row in self._rows for n, v in row.items() if known_once(n) and v != ""}
        return {name: float(value) for name, value in once.items()}

    @rank_zero_only
    def begin_epoch(self, epoch: int) -> None:
        """From here on what others log belongs to this epoch."""
        if epoch != self.epoch:
            self.epoch, self._waiting = epoch, {}

    @rank_zero_only
    def log_row(self, metrics: dict[str, Any], step: int) -> None:
        """Write columns of the row of `metrics["epoch"]`, which may be there already."""
        self._own |= metrics.keys()
        row = self._row(metrics["epoch"])
        if row is None:
            row = {}
            self._rows.append(row)
        if metrics["epoch"] == self.epoch:
            row |= self._waiting
            self._waiting = {}
        row |= {**metrics, "step": step}
        self._write()

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Take up what others log."""
        clashing = self._own & metrics.keys() - {*PLACE}
        if clashing:
            rank_zero_warn(
                f"metrics.csv has its own {min(clashing)}: what a callback logs by that name is left out"
            )
        others = {name: value for name, value in metrics.items() if name not in (*PLACE, *clashing)}
        if not others:
            return
        if (row := self._row(self.epoch)) is None:
            self._waiting |= others
        else:
            row |= others
            self._write()

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: the whole configuration is in config.yaml."""

    def _row(self, epoch: int) -> dict[str, Any] | None:
        return next((row for row in reversed(self._rows) if int(float(row["epoch"])) == epoch), None)

    def _write(self) -> None:
        if self._rows:
            write_rows(self.path, self._rows)
