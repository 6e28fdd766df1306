"""Whether the host ever waits for the GPU in a step: 20 steps of real trainings, with the lines that did."""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

from here import Here, Row
from trainings import AtStep, fit, quickstart, sample

from distill_dynamics.callbacks import EMA
from distill_dynamics.schedule import Cosine

FIRST, STEPS = 5, 20
"""The first steps make the optimiser's state, and what is brought to the device once."""


def rows(here: Here) -> Iterator[Row]:
    """Mixed precision, an EMA, weights that change; accumulated batches and clipped gradients."""
    kinds: dict[str, dict[str, Any]] = {
        "float32": {},
        "bf16-mixed, EMA": {"precision": "bf16-mixed", "callbacks": [EMA(Cosine(0.9, 0.99))]},
        "two batches a step": {"accumulate_grad_batches": 2},
    }
    for name, settings in kinds.items():
        places = _waits(here, **settings)
        for place, times in Counter(places).most_common(4):
            yield Row(f"{name}: {place[-50:]}", times / STEPS, "a step")
        value = float(len(places)) / STEPS if here.is_gpu else "none seen"
        yield Row(f"{name}: waits", value, "a step", at_most=0)


def _waits(here: Here, callbacks: Any = (), **settings: Any) -> list[str]:
    with ExitStack() as watched:
        places: list[str] = []

        def look(step: int) -> None:
            nonlocal places
            if step == FIRST:
                places = watched.enter_context(here.waits())
            elif step == FIRST + STEPS:
                watched.close()

        # More epochs than are run: the last batch of one is where numbers are read.
        data = sample(batch_size=16)
        fit(here, quickstart(), data, *callbacks, AtStep(look), max_steps=40, limit_val_batches=0, **settings)
        return places
