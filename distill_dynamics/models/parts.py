"""Batches that go through a model in parts, which a CPU does faster.

Letter: B batch.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from distill_dynamics.models.isolated import isolated

if TYPE_CHECKING:
    from distill_dynamics.models.backbone import Backbone

PART = 10 * 2**20
"""Bytes of a part's largest tensor: much larger ones do not stay in a processor's cache, and beyond 32 MiB
glibc asks the system for their memory anew in every layer, page by page."""


def in_parts(
    backbone: Backbone, images: Tensor, work: Callable[[Tensor], Any], name: Hashable
) -> Sequence[Tensor]:
    """Images [B, ...] as one batch, or on a CPU without gradients in parts of much the same size.

    How many follows from shapes alone, so that the same images always go in the same parts: a product of
    matrices of another size may differ in its last bit. The first time that `work`, known by its `name`, is
    to be done on images of a shape, it is done on one of them to see how large its tensors are.
    """
    from distill_dynamics.models.sharding import is_sharded  # which imports `Backbone`, and that this

    learns = torch.is_grad_enabled() or backbone.training  # batch norm's statistics are of a whole batch
    if images.device.type != "cpu" or learns or len(images) <= 2:
        return [images]
    if is_sharded(backbone):  # its ranks gather weights together, so each has to take as many passes
        return [images]
    known, kind = backbone.largest_tensors, (name, images.shape[1:], images.dtype)
    if kind not in known:
        with isolated(backbone):
            known[kind] = largest_tensor(work, images[:1])
    at_once = max(2, PART // known[kind])
    return images.tensor_split(-(-len(images) // at_once))


def largest_tensor(work: Callable[[Tensor], Any], images: Tensor) -> int:
    """Bytes of the largest tensor that `work` on images makes."""
    with _Largest() as largest:
        work(images)
    return largest.bytes


class _Largest(TorchDispatchMode):
    """Notes the size of the largest tensor that is no view of what was there."""

    bytes = 1

    def __torch_dispatch__(self, func: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in given:
                self.bytes = max(self.bytes, tensor.numel() * tensor.element_size())
        return made
