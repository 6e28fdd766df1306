"""Weights as safetensors: the same file for the same weights."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from distill_dynamics.files import atomic_write


def write_weights(
    path: str | os.PathLike, state: Mapping[str, Tensor], facts: Mapping[str, Any], dtype: torch.dtype | None
) -> None:
    """Write a state dict, with `facts` as JSON in its header; floating tensors in `dtype`, if that is given.

    The file appears whole or not at all.
    """
    stored = {}
    for key, value in state.items():
        kind = dtype if dtype and value.is_floating_point() else value.dtype
        # A copy, because safetensors refuses parameters that two modules share (CoaT has some).
        stored[key] = value.to("cpu", kind, copy=True).contiguous()
    metadata = {key: json.dumps(value) for key, value in facts.items()}
    content = safetensors.torch.save(stored, metadata={"format": "pt", **metadata})
    with atomic_write(path) as partial:
        # safetensors' own save_file would let nobody else read the file.
        partial.write_bytes(_in_order(content))


def read_weights(path: str | os.PathLike) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `write_weights` wrote, with facts. Raises the library's errors for missing or damaged files."""
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    facts = {key: json.loads(value) for key, value in metadata.items() if key != "format"}
    return safetensors.torch.load_file(path), facts


def weights_digest(model: nn.Module) -> str:
    """16 hex digits of the SHA-256 of a model's weights, their names and types."""
    digest = hashlib.sha256()
    for key, value in model.state_dict().items():
        digest.update(f"{key} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _in_order(content: bytes) -> bytes:
    """The same safetensors file with its metadata sorted: the library writes them in another order each time.

    The file begins with the length of its header in 8 bytes, and the header, JSON filled up with blanks.
    """
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return content[:8] + text.ljust(end - 8) + content[end:]
