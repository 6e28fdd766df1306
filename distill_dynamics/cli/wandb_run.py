"""W&B's record of a run: where it goes, and a logger that outlives its server."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities.rank_zero import rank_zero_only, rank_zero_warn

from distill_dynamics.cli.environment import wandb_mode
from distill_dynamics.cli.sweep import in_sweep
from distill_dynamics.cluster.wandb_steps import next_step
from distill_dynamics.errors import UserError, first_line
from distill_dynamics.runs import directory as run
from distill_dynamics.train.rank import is_first_rank


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
        import wandb

        begins = self._experiment is None
        if begins:
            # That of a process that started this one, a sweep's for one, would outlive this one if it is
            # killed, and still have its run when that is started again.
            os.environ.pop("WANDB_SERVICE", None)
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


def wandb_loggers(settings: Wandb, run_dir: Path) -> list[Logger]:
    """W&B's logger as a list; empty where W&B is off, and on ranks other than the first."""
    mode = wandb_mode(settings.mode)
    if mode == "disabled" or not is_first_rank():
        return []
    import wandb  # a second, for runs that have no use for it

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
    # Lightning passes the first always, and a sweep has the others of its own: W&B warns of each.
    for name in ("anonymous", *(("project", "entity", "id") if in_sweep() else ())):
        logger._wandb_init.pop(name, None)
    return [logger]
