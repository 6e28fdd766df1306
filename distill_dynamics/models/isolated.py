"""A model asked beside its training, which notices nothing of it."""

import random
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from distill_dynamics.models.exact_float32 import exact_float32


@contextmanager
def isolated(model: Any) -> Iterator[None]:
    """Eval mode, float32 without shortcuts, no gradients, no autocast, no compilation; then all as before.

    `model` is a module, or anything else with `parameters()`, whose devices' random states are kept.
    """
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    training = [module.training for module in modules]
    devices = {weight.device for weight in model.parameters()}
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002 (the global one)
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng([d.index for d in devices if d.type == "cuda"]))
        stack.enter_context(torch.no_grad())
        stack.enter_context(exact_float32())
        for kind in {"cpu"} | {device.type for device in devices}:
            stack.enter_context(torch.autocast(kind, enabled=False))
        if "torch._dynamo" in sys.modules:  # its import takes seconds; without it nothing is compiled
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        try:
            for module in modules[:1]:
                module.eval()
            yield
        finally:
            for module, flag in zip(modules, training, strict=True):
                module.training = flag
            random.setstate(python_state)
            np.random.set_state(numpy_state)  # noqa: NPY002
