"""What the curves say, as numbers: of one Profile, of a student beside its teacher, over the epochs.

`signature` reads the entropy, `spectrum_signature` the channel spectrum, `massive_activations` the largest
values; `gap` compares student and teacher; `evolution` follows a student. NaN (None for an epoch, or for a
yes or no) where something cannot be said. numpy alone: nothing here is worth loading late.
"""

from distill_dynamics.dynamics.signature.evolution import Evolution, Rebound, change_error, evolution, rebound
from distill_dynamics.dynamics.signature.gap import Gap, gap
from distill_dynamics.dynamics.signature.massive import MassiveActivations, massive_activations
from distill_dynamics.dynamics.signature.resample import bootstrap_interval, student_t
from distill_dynamics.dynamics.signature.scalars import numbers, scalars
from distill_dynamics.dynamics.signature.shape import LEAST_DEPTH, Signature, signature
from distill_dynamics.dynamics.signature.spectrum import (
    SpectrumSignature,
    band_energy,
    spectral_flatness,
    spectrum_signature,
)

__all__ = [
    "LEAST_DEPTH",
    "Evolution",
    "Gap",
    "MassiveActivations",
    "Rebound",
    "Signature",
    "SpectrumSignature",
    "band_energy",
    "bootstrap_interval",
    "change_error",
    "evolution",
    "gap",
    "massive_activations",
    "numbers",
    "rebound",
    "scalars",
    "signature",
    "spectral_flatness",
    "spectrum_signature",
    "student_t",
]
