"""Whether a training goes the way it goes on a CPU: the first 20 losses, beside those in float64 there."""

from collections.abc import Iterator
from typing import Any

from here import Here, Row
from trainings import fit, quickstart, sample

from distill_dynamics.models.exact_float32 import exact_float32

STEPS = 20


def rows(here: Here) -> Iterator[Row]:
    """Packaged teacher, SpectralKD and ProjectorKD, float32 without TF32."""
    steps = 3 if here.small else STEPS
    with exact_float32():
        found = _losses(here, steps)
    expected = _losses(Here("cpu"), steps, precision="64-true")
    off = [abs(a / b - 1) for a, b in zip(found, expected, strict=True)]
    yield Row("loss at step 1", off[0], "relative", at_most=1e-4)
    yield Row(f"loss at step {steps}", off[-1], "relative", at_most=1e-3)
    yield Row("largest difference on the way", max(off), "relative", at_most=2e-3)


def _losses(here: Here, steps: int, **settings: Any) -> list[float]:
    return fit(here, quickstart(), sample(), max_steps=steps, limit_val_batches=0, **settings)
