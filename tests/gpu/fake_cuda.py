"""A CUDA device that carries shapes, dtypes and devices only: what a step would ask of a GPU, without one.

It finds tensors on different devices (as an error), and lists host waits, copies between host and device, and
kernels without a deterministic form. It has no backward pass: for that there is `meta`, where devices do not
matter.
"""

import functools
import multiprocessing
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CUDA = torch.device("cuda:0")

WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "equal", "is_nonzero"}
"""What gives the host a number, or a tensor whose shape is not known before the device has finished."""

INDETERMINATE = {
    *("_adaptive_avg_pool2d_backward", "_adaptive_avg_pool3d_backward", "avg_pool3d_backward"),
    *("adaptive_max_pool2d_backward", "fractional_max_pool2d_backward", "fractional_max_pool3d_backward"),
    *("max_pool3d_with_indices_backward", "max_unpool2d", "max_unpool3d", "_ctc_loss_backward"),
    *("upsample_linear1d_backward", "upsample_bilinear2d_backward", "_upsample_bilinear2d_aa_backward"),
    *("upsample_bicubic2d_backward", "_upsample_bicubic2d_aa_backward", "upsample_trilinear3d_backward"),
    *("reflection_pad1d_backward", "reflection_pad3d_backward", "replication_pad1d_backward"),
    *("replication_pad2d_backward", "replication_pad3d_backward", "grid_sampler_2d_backward"),
    *("grid_sampler_3d_backward", "nll_loss2d_forward", "nll_loss2d_backward", "histc", "kthvalue"),
    *("_embedding_bag_dense_backward", "_cdist_backward"),
}
"""Kernels that refuse `torch.use_deterministic_algorithms(True)` on CUDA, by its documentation (torch 2.6 to
2.11); those that do so for some arguments alone are in `_refuses`."""


def _refuses(name: str, func: Any, args: tuple, kwargs: dict[str, Any]) -> bool:
    if name in INDETERMINATE:
        return True
    if name == "median" or name == "nanmedian":
        return "dim" in func._schema.overload_name  # the form that gives an index too
    if name == "bincount":
        return (args[1] if len(args) > 1 else kwargs.get("weights")) is not None
    if name in ("cumsum", "cumsum_"):
        return args[0].is_floating_point()
    if name == "put_":
        return True
    return name.startswith("scatter_reduce") and len(args) > 4 and args[4] in ("sum", "mean", "prod")


class Watch(TorchDispatchMode):
    """Lists the lines of this package that wait, copy, or have no deterministic form."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.copies: list[str] = []
        self.indeterminate: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        to_host = name == "_to_copy" and str(kwargs.get("device")) == "cpu"
        if (name in WAITS or to_host) and _on_gpu(args):
            self.waits.append(_place(name))
        if _refuses(name, func, args, kwargs):
            self.indeterminate.append(_place(name))
        given = func(*args, **kwargs)
        if name in ("_to_copy", "copy_") and len({x.device.type for x in _tensors((args, given))}) > 1:
            self.copies.append(_place(name))
        return given


def _tensors(of: Any) -> list[Tensor]:
    return [x for x in tree_leaves(of) if isinstance(x, Tensor)]


def _on_gpu(args: Any) -> bool:
    return any(x.device.type == "cuda" for x in _tensors(args))


def _place(name: str) -> str:
    """An operator and the line that asked for it; in a backward pass there is none of ours."""
    ours = [f for f in traceback.extract_stack() if "/distill_dynamics/" in f.filename]
    if not ours:
        return name
    return f"{name} at {ours[-1].filename.split('/distill_dynamics/')[-1]}:{ours[-1].lineno}"


def moved(module: nn.Module, device: torch.device) -> nn.Module:
    """The module with nothing in it but shapes, on another device; its teacher comes along."""
    return module._apply(lambda x: torch.empty(x.shape, dtype=x.dtype, device=device))


@contextmanager
def fake_cuda() -> Iterator[None]:
    """What is made inside on `CUDA` needs no GPU, and holds no numbers."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def in_a_child(test: Callable[..., None]) -> Callable[..., None]:
    """The test in a process of its own: once there was such a device, autograd has a thread for it, and a
    process with that thread can no longer be forked, as other tests do."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        fork = multiprocessing.get_context("fork")
        reading, writing = fork.Pipe(duplex=False)
        child = fork.Process(target=_tell, args=(writing, test, args, kwargs))
        child.start()
        writing.close()
        error = reading.recv()
        child.join()
        if error:
            pytest.fail(error, pytrace=False)

    return run


def _tell(writing: Any, test: Callable[..., None], args: tuple, kwargs: dict[str, Any]) -> None:
    error = ""
    try:
        test(*args, **kwargs)
    except BaseException:
        error = traceback.format_exc()
    writing.send(error)
