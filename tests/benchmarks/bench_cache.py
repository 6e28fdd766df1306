"""A step with the teacher's answers from a cache, beside one with the teacher and one without any."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from contestants import config, this_tool, write
from sizes import SIZES
from table import Row, row
from turns import take_turns


def cached(size: str, folder: Path, term: dict[str, int] | None) -> dict[str, Any]:
    """The experiment that trains from a cache in `folder`, which is built here."""
    settings = config(size, term=term)
    settings["data"]["init_args"]["views"] = 1
    folder.mkdir()
    path = write(settings, str(folder))
    command = [sys.executable, "-m", "distill_dynamics", "cache-teacher", "--config", path]
    subprocess.run(
        [*command, "--out", str(folder / "cache")],
        check=True,
        cwd=Path(__file__).parent,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    settings["model"]["teacher_cache"] = str(folder / "cache")
    return settings


def rows(small: bool) -> Iterator[Row]:
    """The cheaper the student beside its teacher, the more a cache saves: the first size is the paper's."""
    for size, made in SIZES.items():
        paper = size != "Fashion-MNIST size"
        if small and paper:
            continue
        with tempfile.TemporaryDirectory() as folder:
            seconds = take_turns(
                {
                    "student": partial(this_tool, settings=config(size, teacher=False)),
                    "cached": partial(this_tool, settings=cached(size, Path(folder, "a"), None)),
                    "cached, first": partial(
                        this_tool, settings=cached(size, Path(folder, "b"), {"first": 1})
                    ),
                    "online": partial(this_tool, settings=config(size)),
                },
                **made.turns(small),
            )
        student, what = seconds["student"], made.told(size)
        first = f"{what}: cached SoftKD + SpectralKD first 1 ÷ student alone"
        yield row(f"{what}: cached SoftKD ÷ student alone", seconds["cached"], student, 1.02)
        yield row(first, seconds["cached, first"], student, 1.25 if paper else None)
        yield row(
            f"{what}: cached SoftKD ÷ online SoftKD",
            seconds["cached"],
            seconds["online"],
            0.3 if paper else None,
        )
