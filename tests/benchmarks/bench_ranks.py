"""Two ranks of one core each beside one rank of one core: what is lost to talking."""

import csv
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from contestants import config, write
from table import Row, row

ROUNDS = 3


def rows(small: bool) -> Iterator[Row]:
    """CaiT-S24 → DeiT-Ti with the teacher online, 8 images a rank and step."""
    if small or len(os.sched_getaffinity(0)) < 2:
        return
    rates = [[images_per_s(2), images_per_s(1)] for _ in range(ROUNDS)]
    two, one = zip(*rates, strict=True)
    what = "CaiT-S24 → DeiT-Ti, 8 images a rank: throughput of two ranks of one core ÷ one rank"
    yield row(what, two, one, 1.8, at_least=True, unit="images/s")


def images_per_s(ranks: int, steps: int = 8) -> float:
    """Of the second epoch of a run: the first also warms up."""
    settings = config("CaiT-S24 → DeiT-Ti", term={"first": 1, "last": 1})
    settings["data"]["init_args"]["batch_size"] = 8
    settings["trainer"] |= {"max_epochs": 2, "limit_train_batches": steps, "devices": ranks}
    if ranks > 1:
        ddp = {"find_unused_parameters": False, "gradient_as_bucket_view": True}
        settings["trainer"]["strategy"] = {
            "class_path": "lightning.pytorch.strategies.DDPStrategy",
            "init_args": ddp,
        }
    with tempfile.TemporaryDirectory() as folder:
        path = write(settings, folder)
        command = [sys.executable, "-m", "distill_dynamics", "fit", "--config", path, "--name", "r"]
        cores = sorted(os.sched_getaffinity(0))[:ranks]
        subprocess.run(
            ["taskset", "--cpu-list", ",".join(map(str, cores)), *command, "--runs_dir", folder],
            check=True,
            cwd=Path(__file__).parent,
            env={**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        with Path(folder, "r", "metrics.csv").open() as file:
            return float(list(csv.DictReader(file))[-1]["train/images_per_s"])
