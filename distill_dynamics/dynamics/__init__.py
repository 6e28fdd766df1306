"""Section 2 of the paper: what a model's activations say, layer by layer."""

from distill_dynamics.dynamics.measures.entropy import channel_entropy
from distill_dynamics.dynamics.measures.magnitude import activation_magnitude
from distill_dynamics.dynamics.measures.spectrum import channel_spectrum
from distill_dynamics.dynamics.profile import Profile
from distill_dynamics.dynamics.profiler import profile_model, profile_ranges

__all__ = [
    "Profile",
    "activation_magnitude",
    "channel_entropy",
    "channel_spectrum",
    "profile_model",
    "profile_ranges",
]
