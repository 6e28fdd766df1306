"""Profiles of numbers chosen by hand."""

import numpy as np

from distill_dynamics.dynamics import Profile


def profile_of(**fields):
    """A Profile: `x_images` is curve x of each image, `entropy` and `magnitude` what stands for its mean."""
    curves = {k.removesuffix("_images"): fields.pop(k) for k in list(fields) if k.endswith("_images")}
    means = {name: fields.pop(name) for name in ("entropy", "magnitude") if name in fields}
    if "peak_channel" in fields:
        curves["peak_channel"] = np.tile(fields.pop("peak_channel"), (len(curves["entropy"]), 1))
    for name in ("effective_rank", "capacity_floor", "correlation_floor"):
        if name in fields:
            curves[name] = fields.pop(name)
    return Profile(curves=curves, means=means, **fields)
