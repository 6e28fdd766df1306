"""`fit --baselines`, `fit --seeds N`: a run for each method and seed, and the page that compares them.

Each run is `fit` in a process of its own, with the command that is printed: `--ckpt_path auto` begins it or
goes on with it, so that the whole, given again, goes on where it was stopped.
"""

from __future__ import annotations

import re
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from distill_dynamics.callbacks.console import duration
from distill_dynamics.cli.arms import SUFFIXES, Arm, Settings, arms_of
from distill_dynamics.cli.checks import stem_of
from distill_dynamics.cli.child import Children
from distill_dynamics.cli.comparison_checks import check_config, check_one_process, check_settings
from distill_dynamics.cli.packaged import with_packaged
from distill_dynamics.cluster.preemption import EXIT_STATUS
from distill_dynamics.errors import UserError, first_line
from distill_dynamics.report.page import write_report
from distill_dynamics.report.runs import load_runs
from distill_dynamics.report.study import Study
from distill_dynamics.report.tables import gain_rows
from distill_dynamics.runs.directory import PROGRAM, has_succeeded
from distill_dynamics.tables import aligned
from distill_dynamics.text import counted


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
    check_one_process()
    given = with_packaged([*asked.words, *asked.named])
    settings = Settings(args=given)
    config = settings.config.fit
    check_config(config, asked.seeds)
    arms, left_out = arms_of(settings, given, asked.baselines)
    name, runs_dir = config.name or stem_of(config), Path(config.runs_dir)
    seeds = range(config.seed_everything, config.seed_everything + asked.seeds)
    fits = [_fit(arm, seed, runs_dir, name, asked.words) for seed in seeds for arm in arms]
    page = runs_dir / f"{name}-comparison.html"
    for fit in fits:
        check_settings(fit.run_dir, {**fit.arm.config, "seed_everything": fit.seed})
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


def _fit(arm: Arm, seed: int, runs_dir: Path, name: str, words: Sequence[str]) -> Fit:
    run_name = f"{name}{arm.suffix}-seed{seed}"
    own = ["--seed_everything", str(seed), "--name", run_name, "--ckpt_path", "auto"]
    return Fit(arm, seed, runs_dir / run_name, [*words, *arm.options, *own])


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
    done = f", {len(fits) - len(left)} of them trained already" if len(left) < len(fits) else ""
    yield f"{counted(len(fits), 'run')} in {page.parent}, {seeds}{done}"
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
            if children.asked and (status or rest):  # the last may have come to its end all the same
                status = 130 if children.asked == signal.SIGINT else EXIT_STATUS
            if status:
                first = "mend this first, then " if status == 2 and not children.asked else ""
                again = f"stopped at {place}; {first}the same command goes on there"
                print(again, file=sys.stderr, flush=True)
                raise SystemExit(status)
            each = (time.monotonic() - began) / (trained + 1)
            left_s = f"; {duration(rest * each)} left at {duration(each)} a run" if rest else ""
            print(f"{place}: trained{left_s}\n", flush=True)


def _legend(study: Study, gains: bool) -> str:
    """What the numbers of the table are."""
    if min((len(method.by_seed()) for method in study.finished), default=1) < 2:
        return f"top-1 of the best epoch{'; one seed: differences stand without a verdict' if gains else ''}"
    of_gains = "; gains in points, ± half\n  of their 95 % interval over seeds" if gains else ""
    return f"top-1 of the best epoch, ± its standard deviation over seeds{of_gains}"


def _end(runs: Sequence[Path], page: Path) -> None:
    """Print the table and write the page. The runs are there: what goes wrong here is a line."""
    lines: list[str] = []
    try:
        study = Study(load_runs(runs))
        rows = gain_rows(study)
        lines += [*aligned(rows), "", _legend(study, len(rows[0]) > 2)]
        write_report(runs, page)
        lines += ["", f"{page} has all of it, for a browser"]
    except (Exception, KeyboardInterrupt) as error:
        reason = "stopped" if isinstance(error, KeyboardInterrupt) else first_line(error)
        again = shlex.join(["report", *map(str, runs), "--out", str(page)])
        lines += ["", f"no page was made ({reason}); make it with: {PROGRAM} {again}"]
    print("\n" + "\n".join(f"  {line}".rstrip() for line in lines) + "\n")
