"""What a student can be taught by, one file a method: the equation as a function, then as a module.

Letters: B batch, K classes, C channels, H W grid; C_s student channels, C_t teacher channels.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distill_dynamics.losses.cross_entropy import CrossEntropy
    from distill_dynamics.losses.logits import DistilledSoftKD, SoftKD, soft_kd
    from distill_dynamics.losses.projector import ProjectorKD, projector_kd
    from distill_dynamics.losses.spectral import SpectralKD, spectral_kd

# A loss is loaded when it is asked for.
_MODULES = {
    "CrossEntropy": "cross_entropy",
    "DistilledSoftKD": "logits",
    "ProjectorKD": "projector",
    "SoftKD": "logits",
    "SpectralKD": "spectral",
    "projector_kd": "projector",
    "soft_kd": "logits",
    "spectral_kd": "spectral",
}

__all__ = [
    "CrossEntropy",
    "DistilledSoftKD",
    "ProjectorKD",
    "SoftKD",
    "SpectralKD",
    "projector_kd",
    "soft_kd",
    "spectral_kd",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
