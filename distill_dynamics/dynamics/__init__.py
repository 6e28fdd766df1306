"""Section 2 of the paper: what a model's activations say, layer by layer."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distill_dynamics.dynamics.measures.entropy import channel_entropy as channel_entropy
    from distill_dynamics.dynamics.measures.magnitude import activation_magnitude as activation_magnitude
    from distill_dynamics.dynamics.measures.spectrum import channel_spectrum as channel_spectrum
    from distill_dynamics.dynamics.profile import Profile as Profile
    from distill_dynamics.dynamics.profiler import profile_model as profile_model
    from distill_dynamics.dynamics.profiler import profile_ranges as profile_ranges

_HOMES = {
    "Profile": "distill_dynamics.dynamics.profile",
    "activation_magnitude": "distill_dynamics.dynamics.measures.magnitude",
    "channel_entropy": "distill_dynamics.dynamics.measures.entropy",
    "channel_spectrum": "distill_dynamics.dynamics.measures.spectrum",
    "profile_model": "distill_dynamics.dynamics.profiler",
    "profile_ranges": "distill_dynamics.dynamics.profiler",
}
"""Each name by the module that has it: a Profile is read without torch, a measure needs torch alone."""

__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
