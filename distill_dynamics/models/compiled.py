"""Models compiled block by block (torch.compile)."""

from __future__ import annotations

import torch

from distill_dynamics.errors import UserError
from distill_dynamics.models.backbone import Backbone
from distill_dynamics.models.sharding import blocks

GRAPHS = 64
"""torch's default of 8 is for all models that have one class of blocks: a ResNet-34 alone has more."""


def compile_blocks(backbone: Backbone) -> None:
    """Have each of a model's `blocks` compiled when it first runs; a model without any as one.

    A block's graph serves all blocks of its shape. Graphs are static, one for each shape of the images: the
    short last batch of a validation gets graphs of its own. By torch's default it would make the batch size a
    variable of all graphs that are compiled after it, and a run that is continued, which does not measure its
    teacher again, would train with others than one that was not interrupted.

    Names in checkpoints stay, as they do not with torch.compile(module).
    """
    import torch._dynamo.config as dynamo  # takes seconds

    dynamo.recompile_limit = max(dynamo.recompile_limit, GRAPHS)
    for module in blocks(backbone) or [backbone]:
        module.compile(dynamic=False)


def check_compiler(device: torch.device) -> None:
    """UserError where the device is a CPU and there is no C++ compiler, which torch.compile calls for it."""
    if device.type != "cpu":
        return
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise UserError(
            "model.compile needs a C++ compiler on a CPU, and none is found: install g++, name one in the "
            "environment's CXX, or set model.compile: false"
        ) from error
