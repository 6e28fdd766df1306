"""Makes the README's picture from a run of configs/quickstart.yaml.

python tests/scripts/make_picture.py runs/quickstart-1 configs/quickstart.png
"""

import argparse
from pathlib import Path

from distill_dynamics import figures
from distill_dynamics.runs.profiles import load_profiles


def make(run_dir: Path, out: Path) -> None:
    """Write `figures.overview` of the run as PNG, 150 dpi.

    Raises `UserError` where a Profile cannot be read, `ValueError` where there is none of a student.
    """
    picture = figures.overview(*load_profiles(run_dir / "dynamics"))
    picture.savefig(out, format="png", dpi=150)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="directory of the run")
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    make(arguments.run, arguments.out)
