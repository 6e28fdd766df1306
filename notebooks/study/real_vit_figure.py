"""The paper's Figures 1 to 3 for the real ViT, from its kept Profiles alone."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from evidence import Floats
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from panels import DASHES, RANGES
from real_vit_table import PROFILES

from distill_dynamics.dynamics import Profile
from distill_dynamics.dynamics.signature import bootstrap_interval
from distill_dynamics.figures.style import log_y

COLOUR = "#117733"


def real_vit() -> Figure:
    """Entropy under each range, magnitude, and the spectra of early, middle and late blocks."""
    found = {name: Profile.load(PROFILES / f"{name}.npz") for name in RANGES}
    profile = found["global"]
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(9.5, 3.7), layout="constrained")
    for name, label in RANGES.items():
        one = found[name]
        draw_curve(left, one.blocks, one.entropy, one.entropy_images, ls=DASHES[name], label=label)
    for name, label in (("edge", "one range, moved by part of a bin"), ("middle", None)):
        moved = Profile.load(PROFILES / f"{name}.npz")
        left.plot(moved.blocks, moved.entropy, color=COLOUR, lw=0.8, alpha=0.6, label=label)
    left.set(title="Entropy", ylabel="bits", xlabel="block", ylim=(0, None))
    left.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), title="bins with")
    draw_curve(middle, profile.blocks, profile.magnitude, profile.magnitude_images)
    middle.set(title="Activation magnitude", ylabel="mean |A| (log scale)")
    note = f"intervals over {len(profile.entropy_images)} photographs,\nmostly hidden by the lines"
    middle.set_xlabel(f"block\n\nrings: the lowest block\nbands: 95 % {note}")
    log_y(middle)
    draw_spectra(right, profile)
    for axes in (left, middle):
        axes.set_xticks(profile.blocks[:: 1 if len(profile.blocks) < 13 else 2])
    return figure


def draw_curve(axes: Axes, blocks: Floats, curve: Floats, images: Floats, **look: Any) -> None:
    """A curve [L] with its 95 % bootstrap interval over images [N, L], and its lowest block as a ring."""
    low, high = bootstrap_interval(images)
    axes.fill_between(blocks, low, high, color=COLOUR, alpha=0.3, lw=0)
    axes.plot(blocks, curve, color=COLOUR, marker="o", ms=3, lw=1.4, **look)
    lowest = int(curve.argmin())
    axes.plot(blocks[lowest], curve[lowest], "o", color=COLOUR, ms=8, markerfacecolor="none")


def draw_spectra(axes: Axes, profile: Profile) -> None:
    """Two blocks at each place of the paper's Figure 3, without the mean over channels (k = 0)."""
    half = len(profile.blocks) // 2
    places = {"early": (0, 1), "middle": (half - 1, half), "late": (-2, -1)}
    for (place, rows), colour in zip(places.items(), ("#bbcc33", "#44aa99", "#332288"), strict=True):
        for row, dashes in zip(rows, ("-", "--"), strict=True):
            spectrum = profile.spectrum[row]
            k = np.arange(1, len(spectrum) // 2 + 1)
            label = f"{profile.blocks[row]}, {place}"
            axes.plot(k / len(spectrum), spectrum[k], dashes, color=colour, lw=0.9, label=label)
    axes.set(title="Channel spectrum", xlabel="k / C (channels have no order)")
    axes.set_ylabel("mean |F| (log scale)")
    axes.set_xlim(0, 0.5)
    log_y(axes)
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, -0.18),
        ncols=3,
        columnspacing=1,
        handlelength=1.4,
        title="block",
    )
