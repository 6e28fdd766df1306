"""A batch's answers as the cache holds them.

Letters: B batch, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from distill_dynamics.data.keyed import View
from distill_dynamics.errors import UserError
from distill_dynamics.losses.logits import top_classes
from distill_dynamics.teacher_cache.cache import TeacherCache


def rows_of(stored: TeacherCache, logits: Tensor | None, maps: dict[str, Tensor]) -> dict[str, Tensor]:
    """A batch's answers as the cache holds them, before they are rounded; on the CPU."""
    rows = {name: stored.scales[name].stored(values) for name, values in maps.items()}
    if stored.logit_fields():
        assert logits is not None
        top = top_classes(logits, stored.layout.fields["log_probs"].shape[0], stored.temperature)
        rows |= {name: getattr(top, name) for name in stored.logit_fields()}
    return {name: values.to("cpu") for name, values in rows.items()}


def rounded(name: str, values: Tensor, dtype: np.dtype, views: Sequence[View]) -> NDArray[Any]:
    """A field's values in its type. UserError where they are not finite, or not in that type."""
    array = values.numpy()
    if dtype.kind == "f":
        most = float(np.finfo(dtype).max)
        bad = ~(np.abs(array).reshape(len(array), -1).max(axis=1) <= most)
        if bad.any():
            view, value = views[int(bad.argmax())], array[int(bad.argmax())]
            raise UserError(
                f"cache-teacher: {name} of image {view.image}, view {view.view} cannot be stored, it reaches "
                f"{np.abs(value).max():.3g} where {most:.6g} is the most (in deviations of its channel): "
                "train with the teacher itself, or without the term that needs it"
            )
    return array.astype(dtype)
