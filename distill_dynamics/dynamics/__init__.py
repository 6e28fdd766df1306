"""Section 2 of the paper: what a model's activations say, layer by layer."""

from typing import TYPE_CHECKING

from distill_dynamics.lazy import attach

if TYPE_CHECKING:
    from distill_dynamics.dynamics.measures.entropy import channel_entropy
    from distill_dynamics.dynamics.measures.magnitude import activation_magnitude
    from distill_dynamics.dynamics.measures.spectrum import channel_spectrum
    from distill_dynamics.dynamics.profile import Profile
    from distill_dynamics.dynamics.profiler import profile_model, profile_ranges

# A Profile is read without torch, a measure needs torch alone.
_HOMES = {
    "Profile": "profile",
    "activation_magnitude": "measures.magnitude",
    "channel_entropy": "measures.entropy",
    "channel_spectrum": "measures.spectrum",
    "profile_model": "profiler",
    "profile_ranges": "profiler",
}
__all__ = [*_HOMES]
__getattr__, __dir__ = attach(__name__, _HOMES)
