"""`fit --baselines`, `fit --seeds N`: a run for each method and seed, and the page that compares them.

Each run is `fit` in a process of its own, with the command that is printed: `--ckpt_path auto` begins it or
goes on with it, so that the whole, given again, goes on where it was stopped.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any, NamedTuple

from lightning.pytorch.plugins.environments import SLURMEnvironment

from distill_dynamics.callbacks.console import duration
from distill_dynamics.cli.arms import LAST_SEED, SUFFIXES, Arm, Settings, arms_of, stem_of
from distill_dynamics.cli.child import Children
from distill_dynamics.cli.packaged import with_packaged
from distill_dynamics.cluster.preemption import EXIT_STATUS
from distill_dynamics.errors import UserError, first_line
from distill_dynamics.report.methods import differing
from distill_dynamics.report.page import write_report
from distill_dynamics.report.runs import load_runs
from distill_dynamics.report.study import Study
from distill_dynamics.report.tables import gain_rows
from distill_dynamics.runs.directory import PROGRAM, has_succeeded
from distill_dynamics.runs.read import Unreadable, read_yaml
from distill_dynamics.tables import aligned


class Asked(NamedTuple):
    """What a command line asks for."""

    words: list[str]
    """Of `fit`, without the options below, and without a name and a seed."""
    named: list[str]
    """These two."""
    baselines: bool
    seeds: int


class Fit(NamedTuple):
    """One run."""

    arm: Arm
    seed: int
    run_dir: Path
    words: list[str]

    def __str__(self) -> str:
        return f"{self.arm.method}, seed {self.seed}"


def run(words: Sequence[str]) -> None:
    """Train what the command line asks for, as far as it is not trained yet, and write the page.

    Raises UserError, before anything is trained, for what cannot be compared, and for runs of these names
    that were made with other settings. SystemExit with the status of a run that did not come to its end.
    """
    asked = _asked(words)
    _check_one_process()
    given = with_packaged([*asked.words, *asked.named])
    settings = Settings(args=given)
    config = settings.config.fit
    _check(config, asked.seeds)
    arms, left_out = arms_of(settings, given, asked.baselines)
    name, runs_dir = config.name or stem_of(config), Path(config.runs_dir)
    seeds = range(config.seed_everything, config.seed_everything + asked.seeds)
    fits = [_fit(arm, seed, runs_dir, name, asked.words) for seed in seeds for arm in arms]
    page = runs_dir / f"{name}-comparison.html"
    for fit in fits:
        _check_settings(fit)
    if page.exists() and not [*_found(runs_dir, name)]:
        raise UserError(f"{page} is there, and is of no run of that name: move it, or give another --name")
    left = [fit for fit in fits if not has_succeeded(fit.run_dir)]
    print(
        "\n" + "\n".join(f"  {line}" for line in _plan(arms, fits, left, left_out, page)) + "\n", flush=True
    )
    _train(fits, left)
    _end([*_found(runs_dir, name)], page)


def _asked(words: Sequence[str]) -> Asked:
    found: dict[str, str] = {}
    rest, named, remaining = list[str](), list[str](), iter(words)
    for word in remaining:
        option, equals, value = word.partition("=")
        if option == "--print_config":
            raise UserError("--print_config prints one configuration: leave out --baselines and --seeds")
        if option == "--baselines":
            if equals:
                raise UserError(f"--baselines takes no value, and {value!r} was given")
            found[option] = ""
        elif option in ("--seeds", "--ckpt_path", "--name", "--seed_everything"):
            found[option] = value if equals else next(remaining, "")
            named += [option, found[option]] if option in ("--name", "--seed_everything") else []
        else:
            rest.append(word)
    seeds = found.get("--seeds", "1")
    if not re.fullmatch("[0-9]+", seeds) or int(seeds) < 1:
        raise UserError(f"--seeds: expected a whole number above 0, not {seeds!r}")
    if found.get("--ckpt_path", "auto") != "auto":
        raise UserError(
            "--ckpt_path: with --baselines or --seeds each run goes on from its own newest checkpoint: "
            "leave it out"
        )
    return Asked(rest, named, "--baselines" in found, int(seeds))


def _check_one_process() -> None:
    slurm = int(os.environ.get("SLURM_NTASKS", 1)) if SLURMEnvironment.detect() else 1
    if (processes := max(slurm, int(os.environ.get("WORLD_SIZE", 1)))) > 1:
        raise UserError(
            "--baselines and --seeds start their runs from one process, and a launcher has started "
            f"{processes}: leave it out and give --trainer.devices, or launch each run by itself"
        )


def _check(config: Any, seeds: int) -> None:
    """UserError for a configuration whose runs cannot be repeated, continued or compared."""
    first = config.seed_everything
    if isinstance(first, bool) or not isinstance(first, int):
        raise UserError(f"seed_everything is {first}: seeds are counted from a number, give one")
    if not 0 <= first <= LAST_SEED - seeds + 1:
        raise UserError(
            f"seed_everything: seeds are from 0 to {LAST_SEED}, and {seeds} from {first} on are not"
        )
    if config.trainer.num_nodes > 1:
        raise UserError("--baselines and --seeds run on one machine: trainer.num_nodes is 1")
    if config.trainer.limit_val_batches == 0 or config.trainer.fast_dev_run:
        key = "fast_dev_run" if config.trainer.fast_dev_run else "limit_val_batches"
        raise UserError(
            f"trainer.{key} is {config.trainer[key]}: runs are compared by their top-1 on validation images"
        )
    for path in map(Path, map(str, config.config or [])):
        if path.name.startswith("config") and (path.parent / "run.json").is_file():
            raise UserError(f"--config {path} is a run's own, which would be continued: give a copy of it")


def _fit(arm: Arm, seed: int, runs_dir: Path, name: str, words: Sequence[str]) -> Fit:
    run_name = f"{name}{arm.suffix}-seed{seed}"
    own = ["--seed_everything", str(seed), "--name", run_name, "--ckpt_path", "auto"]
    return Fit(arm, seed, runs_dir / run_name, [*words, *arm.options, *own])


def _check_settings(fit: Fit) -> None:
    """UserError where there is a run of that name with other settings."""
    path = fit.run_dir / "config.yaml"
    if not path.exists():
        return  # it was stopped before its first step, or never begun
    try:
        was = read_yaml(path)
        others = differing(was, {**fit.arm.config, "seed_everything": fit.seed})
    except (Unreadable, AttributeError) as error:
        raise UserError(f"{path}: no configuration of a run; give another --name") from error
    if others:
        key, (then, now) = next(iter(others.items()))
        more = f" ({len(others) - 1} more settings differ)" if len(others) > 1 else ""
        raise UserError(
            f"run {fit.run_dir} was made with {key} {shorten(str(then), 60)}, and here it is "
            f"{shorten(str(now), 60)}{more}: give another --name, or what it was made with"
        )


def _found(runs_dir: Path, name: str) -> Iterator[Path]:
    """All runs of the comparison that are there, by method and seed, whatever was asked for this time."""
    for suffix in SUFFIXES:
        seeds: dict[int, Path] = {}
        for path in runs_dir.glob("*/run.json"):
            if match := re.fullmatch(rf"{re.escape(name + suffix)}-seed([0-9]+)", path.parent.name):
                seeds[int(match[1])] = path.parent
        yield from (seeds[seed] for seed in sorted(seeds))


def _plan(
    arms: Sequence[Arm], fits: Sequence[Fit], left: Sequence[Fit], left_out: Sequence[str], page: Path
) -> Iterator[str]:
    first, last = fits[0].seed, fits[-1].seed
    seeds = f"seed {first}" if first == last else f"seeds {first} to {last}"
    runs = "1 run" if len(fits) == 1 else f"{len(fits)} runs"
    done = f", {len(fits) - len(left)} of them trained already" if len(left) < len(fits) else ""
    yield f"{runs} in {page.parent}, {seeds}{done}"
    stem = page.stem.removesuffix("-comparison")
    rows = [(f"{stem}{arm.suffix}-seed*", f"{arm.method}: {arm.change}") for arm in arms]
    width = max(len(row[0]) for row in rows)
    yield from (f"  {run:<{width}}  {text}" for run, text in rows)
    yield from left_out
    yield f"then {page}"


def _train(fits: Sequence[Fit], left: Sequence[Fit]) -> None:
    """Train what is left. SystemExit where one does not come to its end, or this process is asked to stop."""
    began = time.monotonic()
    with Children() as children:
        for trained, fit in enumerate(left):
            place = f"{fits.index(fit) + 1} of {len(fits)}: {fit}"
            print(f"{place}\n  {PROGRAM} {shlex.join(fit.words)}", flush=True)
            status = children.run(fit.words)
            if not status and not has_succeeded(fit.run_dir):
                status = 1
            rest = len(left) - trained - 1
            if children.asked == signal.SIGINT:
                status = 130
            elif children.asked and rest:
                status = status or EXIT_STATUS
            if status:
                print(f"stopped at {place}; the same command goes on there", file=sys.stderr, flush=True)
                raise SystemExit(status)
            each = (time.monotonic() - began) / (trained + 1)
            left_s = f"; {duration(rest * each)} left at {duration(each)} a run" if rest else ""
            print(f"{place}: trained{left_s}\n", flush=True)


def _end(runs: Sequence[Path], page: Path) -> None:
    """Print the table and write the page. The runs are there: what goes wrong here is a line."""
    lines: list[str] = []
    try:
        study = Study(load_runs(runs))
        lines += [*aligned(gain_rows(study)), ""]
        seeds = {len(method.by_seed()) for method in study.finished}
        lines += [
            "top-1 of the best epoch; one seed: differences stand without a verdict"
            if min(seeds, default=1) < 2
            else "top-1 of the best epoch, ± its standard deviation over seeds; gains in points, ± half\n"
            "  of their 95 % interval over seeds"
        ]
        write_report(runs, page)
        lines += ["", f"{page} has all of it, for a browser"]
    except (Exception, KeyboardInterrupt) as error:
        reason = "stopped" if isinstance(error, KeyboardInterrupt) else first_line(error)
        again = shlex.join(["report", *map(str, runs), "--out", str(page)])
        lines += ["", f"no page was made ({reason}); make it with: {PROGRAM} {again}"]
    print("\n" + "\n".join(f"  {line}".rstrip() for line in lines) + "\n")
