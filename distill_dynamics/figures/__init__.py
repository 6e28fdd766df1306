"""Figures: Profiles in, a matplotlib Figure out; each figure is drawn here and nowhere else.

W&B, the HTML report, the README and notebooks all show these. No I/O, and no pyplot: a Figure made
here belongs to its caller alone, so that none is left open in a long run and no display is needed.
Save one with `figure.savefig(path, dpi=200)`.
Letters: L layers, C_l channels of layer l, k frequency along the channels.
"""

from distill_dynamics.figures.comparison import curve_by_block, entropy_by_range
from distill_dynamics.figures.evolution import curve_evolution, overview, run_figures
from distill_dynamics.figures.floors import floors_by_block
from distill_dynamics.figures.gates import gates_by_block
from distill_dynamics.figures.heatmaps import entropy_heatmap, pair_heatmap
from distill_dynamics.figures.methods import curve_by_method
from distill_dynamics.figures.signatures import signature_by_epoch
from distill_dynamics.figures.spectrum import spectra
from distill_dynamics.figures.training import training_curves

__all__ = [
    "curve_by_block",
    "curve_by_method",
    "curve_evolution",
    "entropy_by_range",
    "entropy_heatmap",
    "floors_by_block",
    "gates_by_block",
    "overview",
    "pair_heatmap",
    "run_figures",
    "signature_by_epoch",
    "spectra",
    "training_curves",
]
