"""Runs the study: each row of configs/fashion_mnist on its seeds, by the project's own commands.

    make study                                              all of it; stop and go on as you like
    python notebooks/study/run.py --only softkd none        these rows
    python notebooks/study/run.py --workers 8               so many runs at a time, a core each

What results/ holds is not made again. A finished run leaves its config.yaml, run.json and metrics.csv there,
with every accuracy, loss, curve and signature, its last and its best Profile, for `report`; checkpoints, the
other Profiles and caches (20 GB) are in runs/study. Analyses of its checkpoints are beside them.
"""

import argparse
import itertools
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import torch
from rows import CONTROLS, ROWS

from distill_dynamics import Backbone

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CONFIGS = Path("configs/fashion_mnist")
RUNS = Path("runs/study")
RESULTS = HERE / "results"

STUDENT = "deit_tiny_patch16_224"
MODELS = {
    "teacher_cait24": "cait_s24_224",
    "teacher_cait24_std035": "cait_s24_224",
    "teacher_resnet": "resnet18",
}
IMAGES = (8, 32, 128, 512)
"""How many probe images are enough?"""


@dataclass(frozen=True)
class Run:
    """A row of the table on one seed."""

    row: str
    seed: int

    @property
    def name(self) -> str:
        """Of its directory."""
        return f"{self.row}-{self.seed}"

    @property
    def teacher(self) -> str | None:
        """Who teaches it."""
        return ROWS[self.row].teacher

    @property
    def cached(self) -> bool:
        """Whether the teacher's answers come from the cache."""
        return self.teacher is not None and ROWS[self.row].cached

    def make(self) -> None:
        """Train it, or go on with it."""
        options: list[object] = ["--seed_everything", self.seed]
        if self.cached:
            options += ["--model.teacher_cache", RUNS / f"cache_{self.teacher}"]
        fit(self.name, ["base", ROWS[self.row].config or self.row], *options)
        if ROWS[self.row].watched:
            look_at_evolution(self.name)
            look_under_ranges(self.name, RUNS / self.name / "checkpoints" / "last.ckpt")
            if self.seed == 0:
                look_with_more_images(self.name)
        keep(self.name)


def runs(rows: Sequence[str]) -> Iterator[Run]:
    """Rows that carry a claim first, seed by seed: whole seeds can be compared before all are there."""
    claims, others = ([row for row in rows if (ROWS[row].seeds > 3) is more] for more in (True, False))
    for seeds, group in ((range(3), claims), (range(3, 5), claims), (range(3), others)):
        yield from (Run(row, seed) for seed, row in itertools.product(seeds, group))


def command(log: str, verb: str, configs: Sequence[str], *options: object) -> None:
    """One command of the project, on one core. Failed, with the command's last line, where it fails."""
    files = [word for config in configs for word in ("--config", CONFIGS / f"{config}.yaml")]
    words = [sys.executable, "-m", "distill_dynamics", verb, *files, *options]
    path = RUNS / f"{log}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        began = file.tell()
        status = subprocess.run(
            [str(word) for word in words],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=file,
            stderr=subprocess.STDOUT,
        ).returncode
    if status:
        said = path.read_bytes()[began:].decode().splitlines()
        last = next((line for line in reversed(said) if line.strip()), "")
        raise Failed(f"{log}: {verb} ended with status {status}: {last} (more in {path})")


class Failed(Exception):
    """A command did."""


def fit(name: str, configs: Sequence[str], *options: object) -> None:
    """Begin the run or go on with it."""
    where = ["--runs_dir", RUNS, "--name", name, "--ckpt_path", "auto"]
    quiet = ["--wandb.mode", "disabled", "--trainer.enable_progress_bar", "false"]
    command(name, "fit", configs, *options, *where, *quiet)


def look(name: str, what: str, *options: object) -> None:
    """Analyse the run's checkpoints on the validation images, as `what`."""
    out = RUNS / name / what
    shutil.rmtree(out, ignore_errors=True)
    model = ["--model", MODELS.get(name, STUDENT), "--data", CONFIGS / "base.yaml"]
    command(name, "analyze", [], *model, "--out", out, *options)


def look_at_evolution(name: str) -> None:
    """Under each layer's own range of the entropy's bins; the run itself has watched it under one for all."""
    files = RUNS / name / "checkpoints" / "epoch_*.ckpt"
    look(name, "evolution", "--checkpoint", files, "--value-range", "layer")


def look_under_ranges(name: str, checkpoint: Path) -> None:
    """What of the entropy is the bins' range, and what the layers' scale?"""
    look(name, "ranges", "--checkpoint", checkpoint, "--value-range", "global", "layer", "scaled")


def look_with_more_images(name: str) -> None:
    """How the intervals shrink."""
    for count in IMAGES:
        last = RUNS / name / "checkpoints" / "last.ckpt"
        look(name, f"images_{count}", "--checkpoint", last, "--n-images", count, "--bootstrap")


def keep(name: str) -> None:
    """What the run says, and the analyses of it, into results/, whole or not at all."""
    partial = RESULTS / f".{name}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for file in ("config.yaml", "run.json", "metrics.csv"):
        shutil.copy(RUNS / name / file, partial)
    (partial / "dynamics").mkdir()
    profiles = RUNS / name / "dynamics"
    last = max(profiles.glob("student_epoch_*.npz"))
    for file in (last, profiles / "student_best.npz", *profiles.glob("teacher.npz")):
        shutil.copy(file, partial / "dynamics")
    for analysis in [RUNS / name / "evolution", *(RUNS / name).glob("images_*")]:
        if analysis.exists():
            (partial / analysis.name).mkdir()
            for file in ("curves.csv", "table.csv"):
                shutil.copy(analysis / file, partial / analysis.name)
    for profile in (RUNS / name / "ranges").glob("profiles/*/*/*.npz"):
        (partial / "ranges").mkdir(exist_ok=True)
        shutil.copy(profile, partial / "ranges" / f"{profile.parent.name}.npz")
    shutil.rmtree(RESULTS / name, ignore_errors=True)
    partial.rename(RESULTS / name)


def make_teacher(name: str) -> None:
    """Train it, and store its best epoch in half precision, which is what teaches."""
    run, stored = f"teacher_{name}", HERE / "teachers" / f"{name}.safetensors"
    if stored.exists() and (RESULTS / run).exists():
        return
    fit(run, [run])
    look_at_evolution(run)
    look_with_more_images(run)
    best = RUNS / run / "student"
    if not best.exists():  # a run of version 0.1.0
        best = RUNS / run / "checkpoints" / "student_best.safetensors"
    stored.parent.mkdir(parents=True, exist_ok=True)
    Backbone(MODELS[run], checkpoint=best).export(stored, dtype=torch.float16)
    look_under_ranges(run, stored)
    keep(run)


def make_control(name: str) -> None:
    """Train a teacher that teaches no one."""
    teacher, _ = name.rsplit("_", 1)
    fit(name, [teacher, name])
    look_at_evolution(name)
    look_under_ranges(name, RUNS / name / "checkpoints" / "last.ckpt")
    keep(name)


def prepare(name: str, cached: bool) -> None:
    """What the runs of a teacher need."""
    make_teacher(name)
    if cached:
        make_cache(name)


def make_cache(name: str) -> None:
    """Its answers to all views; a build that is complete ends at once."""
    terms = "cache" if name == "cait24" else "spectralkd_l1_resnet"
    command(f"cache_{name}", "cache-teacher", ["base", terms], "--out", RUNS / f"cache_{name}")


def main() -> None:
    """Teachers, caches, runs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [*ROWS, *CONTROLS]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="ROW")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    os.chdir(ROOT)
    asked = list(runs([name for name in options.only if name in ROWS]))
    wanted = [run for run in asked if not (RESULTS / run.name).exists()]
    print(f"{len(asked) - len(wanted)} runs are there, {len(wanted)} to make", flush=True)
    pool = ThreadPoolExecutor(options.workers)
    made: dict[Future[None], str] = {}
    try:
        caching = {run.teacher for run in wanted if run.cached}
        taught = dict.fromkeys(run.teacher for run in wanted if run.teacher)
        teachers = {name: pool.submit(prepare, name, name in caching) for name in taught}
        made |= {pool.submit(run.make): run.name for run in wanted if run.teacher is None}
        controls = [name for name in CONTROLS if name in options.only and not (RESULTS / name).exists()]
        made |= {pool.submit(make_control, name): name for name in controls}
        failed = 0
        for name, ready in teachers.items():
            if error := ready.exception():
                failed += 1
                print(f"no run with teacher {name}: {error}", flush=True)
            else:
                made |= {pool.submit(run.make): run.name for run in wanted if run.teacher == name}
        began, before = time.monotonic(), sum(future.done() for future in made)
        for done, future in enumerate(as_completed(made), start=1):
            pace = (time.monotonic() - began) / max(1, done - before)
            error = future.exception()
            failed += error is not None
            told = f"{made[future]} failed: {error}" if error else made[future]
            left = pace * (len(made) - done) / 3600
            print(f"{told}: {done} of {len(made)}, {left:.1f} h left", flush=True)
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C reaches the commands too, and none is begun after it
    sys.exit(failed > 0)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on")
