"""What a DataModule asks a Trainer for, where a test needs no Trainer."""

from types import SimpleNamespace

import torch


def trainer_on_cpu(rank=0, world=1, **settings):
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    state = SimpleNamespace(fn="fit")
    return SimpleNamespace(global_rank=rank, world_size=world, strategy=strategy, state=state, **settings)
