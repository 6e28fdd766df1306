"""Figures: Profiles in, a matplotlib Figure out; each figure is drawn here and nowhere else.

W&B, the HTML report, the README and notebooks all show these. No I/O, and no pyplot: a Figure made
here belongs to its caller alone, so that none is left open in a long run and no display is needed.
Save one with `figure.savefig(path, dpi=200)`.
Letters: L layers, C_l channels of layer l, k frequency along the channels.
"""

from distill_dynamics.figures.comparison import entropy_by_block, entropy_by_range, magnitude_by_block
from distill_dynamics.figures.evolution import (
    entropy_by_method,
    entropy_evolution,
    magnitude_by_method,
    magnitude_evolution,
    of_run,
    overview,
)
from distill_dynamics.figures.heatmaps import entropy_heatmap
from distill_dynamics.figures.spectrum import spectra
from distill_dynamics.figures.training import signature_by_epoch, training_curves

__all__ = [
    "entropy_by_block",
    "entropy_by_method",
    "entropy_by_range",
    "entropy_evolution",
    "entropy_heatmap",
    "magnitude_by_block",
    "magnitude_by_method",
    "magnitude_evolution",
    "of_run",
    "overview",
    "signature_by_epoch",
    "spectra",
    "training_curves",
]
