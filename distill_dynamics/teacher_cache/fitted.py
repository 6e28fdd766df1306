"""What losses fitted to a teacher before its answers were stored: a run takes it from the cache."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from distill_dynamics.errors import UserError, first_line
from distill_dynamics.models.save import read_tensors, write_weights

NAME = "fitted.safetensors"


def write_fitted(folder: Path, terms: Mapping[str, Any]) -> None:
    """Write the state of every loss that has `fit`, if there is one."""
    if state := dict(_states(terms)):
        write_weights(folder / NAME, state, {}, None)


def load_fitted(folder: Path, terms: Mapping[str, Any]) -> None:
    """Fill in the state of every loss that has `fit`. UserError where the cache has none that fit."""
    wanted = dict(_states(terms))
    if not wanted:
        return
    try:
        saved = read_tensors(folder / NAME)
    except Exception as error:  # missing or damaged
        raise UserError(
            f"teacher_cache: {folder / NAME}: {first_line(error)}; build the cache anew"
        ) from error
    for name, buffer in wanted.items():
        if name not in saved or saved[name].shape != buffer.shape:
            raise UserError(
                f"teacher_cache: {folder / NAME} has no {name} of {list(buffer.shape)}, which the loss "
                "here fits to its teacher; build one with this config"
            )
        buffer.detach().copy_(saved[name])


def _states(terms: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    for name, term in terms.items():
        for pair, loss in enumerate(term):
            if hasattr(loss, "fit"):
                yield from ((f"{name}.{pair}.{buffer}", value) for buffer, value in loss.state_dict().items())
