"""`python -m distill_dynamics`: which command is meant. Only its own modules are imported.

Help and a misspelt command need neither torch nor Lightning, which take seconds to import.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from distill_dynamics.cli.environment import drop_empty_variables
from distill_dynamics.cli.errors import exit_on_user_error
from distill_dynamics.cli.help import COMMANDS, PLAIN_COMMANDS, answer
from distill_dynamics.cli.output import output_may_close
from distill_dynamics.cli.packaged import with_packaged
from distill_dynamics.cluster.ranks import failing_as_one
from distill_dynamics.cluster.wandb_end import wandb_closed_in_time
from distill_dynamics.runs import lease

NOISE = (
    ".*does not have many workers",
    "Consider setting `persistent_workers=True`",  # validation images that are kept need none later
    ".*is smaller than the logging interval",  # our rows are epochs
    ".*but have no logger configured",  # outside fit the metrics are printed
    "predict returned None",  # cache-teacher writes what it has
    "Checkpoint directory .* exists and is not empty",  # a run that is continued
    r"`ModelCheckpoint\(monitor='val/\w+1'\)` could not find",  # stopped before anything was validated
    ".*callbacks used to create the checkpoint need to be provided",  # not outside fit
    r".*isinstance\(treespec, LeafSpec\)",  # Lightning's use of torch
    r"Found \d+ module\(s\) in eval mode at the start of training",  # model.freeze_backbone: told there
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
    words = sys.argv[1:] if args is None else args
    with output_may_close():
        if not _completes(words) and not (words and words[0] in (*COMMANDS, *PLAIN_COMMANDS)):
            answer(words)
        _run(words, args)


def _completes(words: Sequence[str]) -> bool:
    """Whether a shell asks what words there are: argcomplete by a variable, others by an option."""
    return "_ARGCOMPLETE" in os.environ or (bool(words) and words[0].startswith("--print_completion"))


def _compares(words: Sequence[str]) -> bool:
    """Whether `fit` is to train several runs and compare them."""
    options = {word.partition("=")[0] for word in words[1:]}
    return words[0] == "fit" and bool(options & {"--baselines", "--seeds"}) and not options & {"-h", "--help"}


def _run(words: Sequence[str], args: list[str] | None) -> None:
    if not sys.flags.safe_path and "" not in sys.path:
        sys.path.append("")  # a user's own losses lie where the command is run: a script does not look there
    for message in NOISE:
        warnings.filterwarnings("ignore", message=message)
    for logger in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed"):
        logging.getLogger(logger).setLevel(logging.WARNING)
    with (
        _short_warnings(),
        lease.released(),
        wandb_closed_in_time(),
        failing_as_one(),
        exit_on_user_error(),
    ):
        drop_empty_variables()
        if _completes(words):
            from distill_dynamics.cli.completion import CompletionCLI

            CompletionCLI(args=args)
        elif words[0] == "cache-teacher":
            from distill_dynamics.cli.cache_teacher import CacheTeacherCLI

            CacheTeacherCLI(with_packaged(words[1:]))
        elif words[0] in PLAIN_COMMANDS:
            from distill_dynamics.cli import run_function

            run_function.run(words)
        elif _compares(words):
            from distill_dynamics.cli import comparison

            comparison.run(words)
        else:
            from distill_dynamics.cli.fit import DistillCLI

            DistillCLI(args=with_packaged(words))
