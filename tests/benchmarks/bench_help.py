"""How long one waits for the program's help, beside the import of torch that nearly all else begins with."""

import subprocess
import sys
import time
from collections.abc import Iterator

from table import Row, row

ROUNDS = 5


def rows(small: bool) -> Iterator[Row]:
    """`--help`, and the help of `fit`, which knows all that a config may say."""
    help_of = [sys.executable, "-m", "distill_dynamics"]
    commands = [[*help_of, "--help"], [*help_of, "fit", "--help"], [sys.executable, "-c", "import torch"]]
    for command in commands:
        seconds(command)  # so that the files are in the system's cache
    turns = [[seconds(command) for command in commands] for _ in range(1 if small else ROUNDS)]
    program, fit, torch = zip(*turns, strict=True)
    yield row("python -m distill_dynamics --help ÷ python -c 'import torch'", program, torch, 1.3)
    yield row("python -m distill_dynamics fit --help ÷ python -c 'import torch'", fit, torch)


def seconds(command: list[str]) -> float:
    """From the start of a process to its end."""
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began
