"""What a teacher's answers depend on: what a cache was made by, beside what a run would make it by."""

from __future__ import annotations

import json
from importlib import metadata
from typing import Any

from distill_dynamics.data.sources import fingerprint
from distill_dynamics.errors import UserError
from distill_dynamics.models.backbone import Backbone
from distill_dynamics.models.save import weights_digest

ANSWERS = 1
"""To be raised when this package's views, or what it stores of an answer to one, would be others."""

PIXELS_DEPEND_ON = ("torch", "torchvision", "timm", "numpy", "pillow")
"""Packages whose versions may change a view or an answer."""


def identity(teacher: Backbone, data: Any, precision: str) -> dict[str, Any]:
    """Everything that a teacher's answers to a DataModule's views depend on; flat, plain values.

    `data` is set up for fitting. The run's own seed is not in it: views have one of their own.
    """
    if not hasattr(data, "views_depend_on"):
        raise UserError(
            f"data: {type(data).__name__} has no fixed views for a teacher's cache; those of "
            "distill_dynamics.data have (write yours as a subclass of ImageData)"
        )
    facts = {
        "teacher.name": teacher.name,
        "teacher.timm_kwargs": teacher.timm_kwargs,
        "teacher.weights": weights_digest(teacher.model),
        "teacher.mean": teacher.mean,
        "teacher.std": teacher.std,
        "teacher's precision": precision,
        **{f"data.{name}": value for name, value in data.views_depend_on().items()},
        "version of answers": ANSWERS,
        # Of one version there are builds for CPUs and for GPUs, 2.6.0+cpu and so on.
        **{f"version of {name}": metadata.version(name).split("+")[0] for name in PIXELS_DEPEND_ON},
    }
    return json.loads(json.dumps(facts))  # as a file gives it back: tuples are lists


def validated_on(data: Any) -> dict[str, Any]:
    """What, beside `identity`, the teacher's accuracy depends on; `data` is set up for fitting."""
    images, trainer = data.sources.get("val"), data.trainer
    limit = 1.0 if trainer is None else trainer.limit_val_batches
    return {
        # Of a teacher that takes any size; `identity` has that of the views.
        **({"image_size": data.image_size} if data.view_size != data.image_size else {}),
        # The first of each rank. 1 is one batch, 1.0 is all.
        **(
            {"batches": limit, "batch_size": data.eval_batch_size, "devices": trainer.world_size}
            if isinstance(limit, int) or limit != 1.0
            else {}
        ),
        "images": None if images is None else fingerprint(images),
        "crop_pct": data.crop_pct,
        "interpolation": data.interpolation,
    }
