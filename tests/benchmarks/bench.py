"""All benchmarks, as one table: ratios within one run on one machine.

    make bench                                    everything; keep the machine quiet (more than an hour)
    python tests/benchmarks/bench.py --only step cache
    python tests/benchmarks/bench.py --small      minutes: whether they run, not how fast anything is

Rows are printed as they are known; at the end results.json, results.md and results.png lie in --out.
"""

import argparse
import importlib
import time
from pathlib import Path

from table import machine, plain, write

BENCHMARKS = (
    *("step", "teacher", "cache", "probe", "conflict", "memory", "ranks"),
    *("analyze", "help", "methods", "feed"),
)


def main() -> None:
    """Run them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=BENCHMARKS, metavar="NAME")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    where, began = machine(), time.monotonic()
    print(", ".join(f"{name} {value}" for name, value in where.items()), flush=True)
    found = []
    for name in options.only:
        for row in importlib.import_module(f"bench_{name}").rows(options.small):
            print(plain(row), flush=True)
            found.append(row)
    write(options.out, found, {**where, "minutes": round((time.monotonic() - began) / 60, 1)})
    print(f"{options.out}/results.md, .json, .png")


if __name__ == "__main__":
    main()
