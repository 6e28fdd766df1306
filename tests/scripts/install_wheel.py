"""Builds the sdist, the wheel from it, installs the wheel into an environment of its own, and runs it.

    .venv/bin/python tests/scripts/install_wheel.py

Only the package itself is installed: what it depends on is read from the environment that runs this script.
"""

import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parents[2]
SHORT = "--trainer.max_epochs 1 --trainer.limit_train_batches 2 --trainer.limit_val_batches 2 --name smoke"
STUDENT = """
import sys
from pathlib import Path
import distill_dynamics, timm
assert Path(distill_dynamics.__file__).is_relative_to(sys.prefix), distill_dynamics.__file__
timm.create_model("local-dir:runs/smoke/student", pretrained=True)
"""


def main() -> None:
    """Stop with the status of the first command that fails."""
    with tempfile.TemporaryDirectory() as folder:
        run(folder, sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, str(ROOT))
        (wheel,) = Path(folder).glob("*.whl")
        environment = Path(folder, "environment")
        venv.create(environment, with_pip=False, symlinks=True)
        python, program = environment / "bin" / "python", environment / "bin" / "distill_dynamics"
        install = ("--python", python, "install", "--quiet", "--no-index", "--no-deps", wheel)
        run(folder, sys.executable, "-m", "pip", *install)
        (site,) = environment.glob("lib/python3*/site-packages")
        # They come after what is installed there; no .pth file in them counts, so that no checkout is found.
        dependencies = (path for path in sys.path if Path(path).name == "site-packages")
        (site / "dependencies.pth").write_text("\n".join(dependencies))
        run(folder, program, "--version")
        run(folder, program, "fit", "--config", "packaged:quickstart", *SHORT.split())
        run(folder, python, "-c", STUDENT)
        page = Path(folder, "runs", "smoke", "report.html")
        if not page.is_file():
            raise SystemExit(f"fit wrote no {page.name}")


def run(folder: str, *words: str | Path) -> None:
    """Run a command in `folder`, without a path to this checkout."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    try:
        subprocess.run(words, cwd=folder, env={**clean, "WANDB_MODE": "offline"}, check=True)
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"{' '.join(map(str, words))}: exit status {error.returncode}") from None


if __name__ == "__main__":
    main()
