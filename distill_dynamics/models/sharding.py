"""A teacher too large to stand whole beside the student: each device holds a part of it."""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from distill_dynamics.errors import UserError
from distill_dynamics.models.backbone import Backbone


def shard(backbone: Backbone, device: torch.device, ranks: int, key: str = "model.shard_teacher") -> None:
    """Spread a frozen backbone over n ranks' devices, each of which keeps 1/n of every parameter.

    A block's parameters are gathered when the block runs and let go after it (torch's FSDP2); those outside
    all `blocks` are there for the whole forward pass. So a device holds 1/n of the model and, while it runs,
    a block or two, and was never handed more. Nothing is cast: what autocast does with a gathered weight is
    what it does with a whole one, and the numbers are those of the whole model. One that is compiled is
    compiled in pieces, between the gatherings.

    From here on a call of the backbone is collective: every rank must make as many, on as many layers, or
    those that make more wait for ever.

    Under Lightning's DDP, which knows nothing of it: the student, its gradients, checkpoints and averages
    stay as they are. `ModelParallelStrategy` would have the student sharded or reduced by hand and rewrite
    the checkpoints, all for a model that needs neither gradients nor a checkpoint.

    What it takes on the host: each process has built the whole model in main memory before (27 GB for seven
    billion parameters in float32, up to twice that while pretrained weights are read), and lets go of it
    block by block. Untested on GPU.

    Raises:
        UserError: a model whose parts share parameters; `key` is the setting that asks for it.
    """
    if isinstance(backbone, FSDPModule):
        return  # of an earlier fit with the same Trainer
    named = dict(backbone.named_parameters(remove_duplicate=False))
    if len(named) > len(list(backbone.parameters())):
        raise UserError(
            f"{key}: parts of {backbone.name} share parameters, and such a model cannot be sharded; set "
            f"{key}: false"
        )
    mesh = init_device_mesh(device.type, (ranks,))
    for module in [*blocks(backbone), backbone]:
        fully_shard(module, mesh=mesh, reshard_after_forward=True)


def is_sharded(backbone: Backbone) -> bool:
    """Whether a call of this backbone is collective (see `shard`)."""
    return isinstance(backbone, FSDPModule)


def blocks(backbone: Backbone) -> list[nn.Module]:
    """What runs one after the other and holds most of the parameters, in the order of timm's modules.

    These are the elements of timm's lists of modules (a stage's blocks, where there are stages), finer
    than `Backbone.layers` for hierarchical models; empty for a model without such lists (RegNet).
    """
    lists = [m for m in backbone.model.children() if isinstance(m, (nn.Sequential, nn.ModuleList))]
    return [block for modules in lists for block in _blocks(modules)]


def _blocks(module: nn.Module) -> list[nn.Module]:
    inner = getattr(module, "blocks", module)  # a stage has its blocks under this name
    if isinstance(inner, (nn.Sequential, nn.ModuleList)):
        return [block for element in inner for block in _blocks(element)]
    return [module] if next(module.parameters(), None) is not None else []
