"""The numbers of the real ViT's Profiles, for tables/real_vit.csv."""

from collections.abc import Callable, Iterator
from pathlib import Path

from evidence import OF_CURVES, Entry, Floats, by_block, over_images

from distill_dynamics.dynamics import Profile
from distill_dynamics.dynamics.signature import (
    LEAST_DEPTH,
    massive_activations,
    signature,
    spectrum_signature,
)

PROFILES = Path(__file__).parent / "results" / "real_vit"

RANGES = ("global", "layer", "scaled", "edge", "middle")
"""`edge` and `middle` are the global range moved by part of a bin; see real_vit.py."""

HEIGHTS: dict[str, Callable[[Floats, Floats], float]] = {
    "left": lambda entropy, magnitude: entropy[0] - entropy.min(),
    "right": lambda entropy, magnitude: entropy[-1] - entropy.min(),
}


def real_vit() -> Iterator[Entry]:
    """Question 2 of a pretrained ViT-S/14: entropy by block under each range of the bins, bits.

    `left` and `right` are the first and the last block's heights above the lowest, which cannot be below 0;
    `fall` and `rise` are `arms`, above the middle third's mean, which a U that is lowest early falls short
    of. `r2` and `slope` are of a straight line in log2 magnitude over blocks, as in `ranges`. Intervals are
    bootstrap ones over images, the bins as they are; what the bins do is between the entries: `bin` is their
    width where all blocks share it, `zero` says where in its bin the value 0 is, from edge 0 to edge 1. `u`
    as in `shapes`; `low_` are shares of low frequencies of the channel spectra, `massive` is the largest
    mean ratio of a block's peak to its median.
    """
    for value_range in RANGES:
        profile = Profile.load(PROFILES / f"{value_range}.npz")
        shape, spectrum = signature(profile), spectrum_signature(profile)
        entry: Entry = {"name": value_range, "images": len(profile.entropy_images)}
        if value_range not in ("layer", "scaled"):
            low, high = profile.value_range[0]
            width = (high - low) / profile.bins
            entry |= {"bin": width, "zero": round(-low / width, 6) % 1}
        entry |= {"u": int(bool(shape.u_shaped) and shape.depth >= LEAST_DEPTH), "lowest": shape.nadir}
        entry |= {"magnitude_lowest": shape.magnitude_nadir, "massive": massive_activations(profile).ratio}
        for name, value in (HEIGHTS | OF_CURVES).items():
            entry |= over_images(profile, value, f"{name}_")
        for where in ("early", "middle", "late"):
            entry[f"low_{where}"] = getattr(spectrum, f"low_{where}")
        yield entry | by_block(profile.entropy) | by_block(profile.magnitude, "magnitude")
