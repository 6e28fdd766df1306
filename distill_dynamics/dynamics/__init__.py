"""Section 2 of the paper: what a model's activations say, layer by layer."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distill_dynamics.dynamics.measures.entropy import channel_entropy
    from distill_dynamics.dynamics.measures.magnitude import activation_magnitude
    from distill_dynamics.dynamics.measures.spectrum import channel_spectrum
    from distill_dynamics.dynamics.profile import Profile
    from distill_dynamics.dynamics.profiler import profile_model, profile_ranges

# Loaded when they are asked for: a Profile is read without torch, a measure without timm.
_MODULES = {
    "Profile": "profile",
    "activation_magnitude": "measures.magnitude",
    "channel_entropy": "measures.entropy",
    "channel_spectrum": "measures.spectrum",
    "profile_model": "profiler",
    "profile_ranges": "profiler",
}

__all__ = [
    "Profile",
    "activation_magnitude",
    "channel_entropy",
    "channel_spectrum",
    "profile_model",
    "profile_ranges",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
