"""The end of `fit`: its report, what came of it, and where everything is."""

from __future__ import annotations

import re
import sys
import textwrap
from pathlib import Path

from distill_dynamics.callbacks.console import doubts_of
from distill_dynamics.callbacks.record import BEST_STUDENT
from distill_dynamics.errors import first_line
from distill_dynamics.models.reshape import ARCHITECTURES
from distill_dynamics.models.teacher_check import framed
from distill_dynamics.report.page import write_report
from distill_dynamics.report.runs import load_runs
from distill_dynamics.runs.directory import PROGRAM
from distill_dynamics.tables import Named, Row, accuracy_rows, aligned, signature_rows
from distill_dynamics.train.distiller import Distiller

_WIDTH = 80 - 27
"""Of what is said of a file, in a terminal of 80 columns."""

PARTED = "one half of the labelled validation images classifies the other"
LEGEND = "magnitude: the block where that is lowest, and U where its curve is a U, too"


def end(run_dir: Path, distiller: Distiller) -> None:
    """Write report.html; print accuracies, each probed epoch's signature, and where everything is.

    The run has come to its end: what goes wrong here, or Ctrl-C, is a line and no end of `fit`.
    """
    lines: list[str] = []
    try:
        (run,) = load_runs([run_dir])
        signatures = terminal_signature_rows(run.named())
        chance = [] if run.chance is None else [f"{PARTED}; chance is {run.chance:.4g} %"]
        for rows, note in ((accuracy_rows(run.metrics), chance), (signatures, [LEGEND])):
            lines += [*aligned(rows), *note, ""] if rows else []
        write_report([run_dir], run_dir / "report.html")
    except (Exception, KeyboardInterrupt) as error:
        reason = "stopped" if isinstance(error, KeyboardInterrupt) else first_line(error)
        again = f"{PROGRAM} report {run_dir} --out {run_dir / 'report.html'}"
        lines += [f"no report was made ({reason}); make it with: {again}", ""]
    lines += _files(run_dir, distiller.student.name in ARCHITECTURES)
    print("\n" + "\n".join(f"  {line}".rstrip() for line in lines) + "\n")
    for warning in doubts_of(distiller):
        print(framed(warning), file=sys.stderr)


def terminal_signature_rows(named: Named) -> list[Row]:
    """`signature_rows` in 80 columns."""
    header = ("entropy by block", "lowest", "fall (bits)", "rise (bits)", "shape", "magnitude")
    rows = signature_rows([(who.removeprefix("student, "), profile) for who, profile in named])[1:]
    short = {"lowest at ": "", ", a U too": ", U"}
    cells = [(*row[:-1], re.sub("|".join(short), lambda match: short[match[0]], row[-1])) for row in rows]
    return [header, *cells] if cells else []


def _files(run_dir: Path, reshaped: bool) -> list[str]:
    # Where nothing says which is the best, there is no such checkpoint.
    chosen = "best" if (run_dir / "checkpoints" / "best.ckpt").exists() else "last"
    made_by = "Backbone: checkpoint=" if reshaped else "timm.create_model: local-dir:"
    wanted = {
        "metrics.csv": "every metric, one row an epoch",
        "dynamics": "Profiles (Profile.load)",
        BEST_STUDENT: f"the {chosen} one; for {made_by}{run_dir}/student",
        "checkpoints/last.ckpt": f"continue with --config {run_dir}/config.yaml --ckpt_path last",
        "wandb": f"offline W&B run: wandb sync {run_dir}/wandb/offline-run-*",
        "report.html": "all of this with figures, for a browser",
    }
    lines = [f"written to {run_dir}"]
    for name, text in wanted.items():
        if (run_dir / name).exists():
            first, *rest = textwrap.wrap(text, _WIDTH, break_long_words=False, break_on_hyphens=False)
            lines += [f"  {name:<22} {first}", *(f"{25 * ' '}{line}" for line in rest)]
    return lines
