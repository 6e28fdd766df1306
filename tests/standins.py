"""What stands in for a Trainer, or a logger, where a test needs none."""

from types import SimpleNamespace

import torch
from lightning.pytorch.loggers.logger import DummyLogger


def trainer_on_cpu(rank=0, world=1, **settings):
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    state = SimpleNamespace(fn="fit")
    return SimpleNamespace(global_rank=rank, world_size=world, strategy=strategy, state=state, **settings)


class Rows(DummyLogger):
    """Keeps the rows of metrics.csv."""

    def __init__(self):
        super().__init__()
        self.rows = []

    def log_row(self, metrics, step):
        self.rows.append({name: float(value) for name, value in metrics.items()})
