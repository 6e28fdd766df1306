"""The numbers of the real ViT's Profiles, for tables/real_vit.csv."""

from collections.abc import Callable, Iterator
from typing import get_args

import numpy as np
from evidence import RESULTS, Entry, Floats, arms, over_images
from scipy import stats

from distill_dynamics.dynamics import Profile
from distill_dynamics.dynamics.profiler import RangeMode
from distill_dynamics.dynamics.signature import massive_activations, signature, spectrum_signature

PROFILES = RESULTS / "real_vit"

NUMBERS: dict[str, Callable[[Floats, Floats], float]] = {
    "left": lambda entropy, magnitude: entropy[0] - entropy.min(),
    "right": lambda entropy, magnitude: entropy[-1] - entropy.min(),
    "fall": lambda entropy, magnitude: arms(entropy)[0],
    "rise": lambda entropy, magnitude: arms(entropy)[1],
    "r2": lambda entropy, magnitude: stats.linregress(np.log2(magnitude), entropy).rvalue ** 2,
    "slope": lambda entropy, magnitude: stats.linregress(np.log2(magnitude), entropy).slope,
}


def real_vit() -> Iterator[Entry]:
    """Question 2 of a pretrained ViT-S/14: entropy by block under each range of the bins, bits.

    `left` and `right` are the first and the last block's heights above the lowest, which cannot be below 0;
    `fall` and `rise` are `arms`, above the middle third's mean, which a U that is lowest early falls short
    of. `r2` and `slope` are of a straight line in log2 magnitude over blocks, as in `ranges`. Intervals are
    bootstrap ones over images. `u` is `signature`'s verdict; `low_` and `flatness_` are of the channel
    spectra, `massive` is the largest mean ratio of a block's peak to its median.
    """
    for value_range in get_args(RangeMode):
        profile = Profile.load(PROFILES / f"{value_range}.npz")
        shape, spectrum, peak = signature(profile), spectrum_signature(profile), massive_activations(profile)
        entry: Entry = {"name": value_range, "images": len(profile.entropy_images)}
        entry |= {"u": int(bool(shape.u_shaped)), "lowest": shape.nadir}
        entry |= {"magnitude_lowest": shape.magnitude_nadir}
        for name, value in NUMBERS.items():
            entry |= over_images(profile, value, f"{name}_")
        entry |= {"massive": peak.ratio, "massive_block": peak.block}
        for what in ("flatness", "low"):
            for where in ("early", "middle", "late"):
                entry[f"{what}_{where}"] = getattr(spectrum, f"{what}_{where}")
        for what, curve in (("block", profile.entropy), ("magnitude", profile.magnitude)):
            entry |= {f"{what}_{block:02d}": value for block, value in enumerate(curve, start=1)}
        yield entry
