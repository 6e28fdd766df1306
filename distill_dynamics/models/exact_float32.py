"""Products and convolutions of float32 in float32, whatever speed was preferred outside."""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import backends


@contextlib.contextmanager
def exact_float32() -> Iterator[None]:
    """No TF32 on a GPU, no bfloat16 within a CPU's products of float32; then settings as before.

    torch takes TF32 for convolutions unless told otherwise, a ViT's patch embedding among them, and for
    products after `torch.set_float32_matmul_precision("high")`; after "medium" a CPU may take bfloat16.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch 2.9 and later name the newer settings, which are set here too
        old = [_read(torch.get_float32_matmul_precision), _read(lambda: backends.cudnn.allow_tf32)]
        new = [(place, place.fp32_precision) for place in _places()]
        torch.set_float32_matmul_precision("highest")
        backends.cudnn.allow_tf32 = False
    try:
        for place, _ in new:
            place.fp32_precision = "ieee"
        yield
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if old[0] is not None:
                torch.set_float32_matmul_precision(old[0])
            if old[1] is not None:
                backends.cudnn.allow_tf32 = old[1]
            for place, precision in new:
                place.fp32_precision = precision


def _places() -> list[Any]:
    """What torch 2.9 and later set in the place of two older switches; none before."""
    found: list[Any] = [backends.cuda.matmul]
    for library in (backends.cudnn, backends.mkldnn):
        found += [getattr(library, name) for name in ("conv", "rnn", "matmul") if hasattr(library, name)]
    return [place for place in found if hasattr(place, "fp32_precision")]


def _read(setting: Any) -> Any:
    """None where torch has no answer: to the older question, once the newer settings differ by operation."""
    try:
        return setting()
    except RuntimeError:
        return None
