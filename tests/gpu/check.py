"""What one CUDA GPU says of this project: eight minutes, no network, no weights.

    make gpu-check                                        in a checkout's own environment
    python tests/gpu/check.py                             with torch, timm, lightning and torchmetrics alone
    python tests/gpu/check.py --only waits speed --budget 200
    python tests/gpu/check.py --device cpu --small        whether it runs; the numbers say nothing

Rows are printed as they are known and the JSON is written anew with each, so that a kill keeps what is there.
"LOOK" is beside what is not as expected; the exit status is the number of such rows, 99 at most.
"""

import argparse
import importlib
import json
import os
import platform
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE), str(HERE.parent / "benchmarks")]
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for what is to be deterministic

SECTIONS = (
    *("ceilings", "parity", "waits", "trajectory", "probe", "feed", "resume", "ddp1"),
    *("speed", "end_to_end"),
)
"""In this order: what the others are read beside, what is wrong, what is slow."""


def run(sections: Sequence[str], device: str, small: bool, budget: float, out: Path) -> int:
    """Run sections, and give how many rows are to be looked at."""
    import torch
    from here import Here, Row

    began = time.monotonic()
    here = Here(device, small, lambda: budget - (time.monotonic() - began))
    machine = {
        "device": torch.cuda.get_device_name() if here.is_gpu else "cpu",
        "small": small,
        "python": platform.python_version(),
        **{name: importlib.import_module(name).__version__ for name in ("torch", "timm", "lightning")},
    }
    print(", ".join(f"{name} {value}" for name, value in machine.items()), flush=True)
    known: list[Row] = []

    def keep(section: str, row: Row) -> None:
        row.section = section
        known.append(row)
        print(row, flush=True)
        listed = [{**vars(row), "verdict": row.verdict} for row in known]
        partial = out.with_suffix(".partial")
        partial.write_text(json.dumps({"machine": machine, "rows": listed}, indent=1) + "\n")
        partial.replace(out)

    for section in sections:
        if here.seconds_left() < 0:
            keep(section, Row("no time is left", "skipped"))
            continue
        since = time.monotonic()
        try:
            for row in importlib.import_module(f"check_{section}").rows(here):
                keep(section, row)
        except Exception as error:
            traceback.print_exc()
            keep(section, Row(f"{type(error).__name__}: {str(error).partition(chr(10))[0][:90]}", "failed"))
        keep(section, Row("took", time.monotonic() - since, "s"))
    keep("all", Row("took", time.monotonic() - began, "s", at_most=budget))
    return sum(row.verdict == "LOOK" for row in known)


def main() -> None:
    """Read the options and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS, metavar="SECTION")
    parser.add_argument("--budget", type=float, default=480, metavar="SECONDS")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("gpu_check.json"))
    given = parser.parse_args()
    import torch

    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA GPU; --device cpu --small shows whether the check runs")
    sys.exit(min(run(given.only, given.device, given.small, given.budget, given.out), 99))


if __name__ == "__main__":
    main()
