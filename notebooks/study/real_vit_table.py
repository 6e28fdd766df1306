"""The numbers of the real ViT's Profiles, for tables/real_vit.csv."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from evidence import Entry, Floats, arms, over_images
from scipy import stats

from distill_dynamics.dynamics import Profile
from distill_dynamics.dynamics.signature import massive_activations, signature, spectrum_signature

PROFILES = Path(__file__).parent / "results" / "real_vit"

RANGES = ("global", "layer", "scaled", "edge", "middle")
"""`edge` and `middle` are the global range moved by part of a bin; see real_vit.py."""

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
    `fall` and `rise` are `arms`, above the middle third's mean: below 0 for a U that is lowest early. `r2`
    and `slope` are of a straight line in log2 magnitude over blocks, as in `ranges`. Intervals are bootstrap
    ones over images, with the bins as they are; what the bins do is between the entries: `bin` is their
    width where all blocks share it, `zero` says where in its bin the value 0 is, from edge 0 to edge 1.
    `u` is `signature`'s verdict, `massive` the mean ratio of peak to median of the block where it is largest;
    `flatness_` and `low_` are of the channel spectra.
    """
    for value_range in RANGES:
        profile = Profile.load(PROFILES / f"{value_range}.npz")
        shape, spectrum, peak = signature(profile), spectrum_signature(profile), massive_activations(profile)
        entry: Entry = {"name": value_range, "images": len(profile.entropy_images)}
        if value_range not in ("layer", "scaled"):
            low, high = profile.value_range[0]
            width = (high - low) / profile.bins
            entry |= {"bin": width, "zero": round(-low / width, 6) % 1}
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
