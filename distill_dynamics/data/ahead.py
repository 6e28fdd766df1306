"""Batches made for a device one ahead of their use, where the device can do both at once."""

from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any

import torch

from distill_dynamics.errors import UserError


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """One for good: the memory of each stream is kept for it alone."""
    return torch.cuda.Stream(device)


def made_ahead(
    items: Iterable[Any], make: Callable[[Any], tuple[Any, ...]], device: torch.device
) -> Iterator[tuple[Any, ...]]:
    """`make(item)` of each item, tensors and dicts of them; on CUDA one item ahead, on a stream of its own.

    What is yielded is ready for the stream that is current where it is asked for. A UserError about an item
    is raised when that item is asked for, not before.
    """
    if device.type != "cuda":
        yield from map(make, items)
        return
    stream = _side_stream(device)

    def received(made: tuple[Any, ...], event: torch.cuda.Event) -> tuple[Any, ...]:
        current = torch.cuda.current_stream(device)
        current.wait_event(event)
        for part in made:
            for tensor in part.values() if isinstance(part, dict) else [part]:
                tensor.record_stream(current)  # or its memory might be filled anew before the step is done
        return made

    before, error = None, None
    try:
        for item in items:
            with torch.cuda.stream(stream):
                ahead = make(item), stream.record_event()
            if before is not None:
                yield received(*before)
            before = ahead
    except UserError as raised:
        error = raised
    if before is not None:
        yield received(*before)
    if error is not None:
        try:
            raise error
        finally:
            del error  # in its own traceback, it would keep the workers alive
