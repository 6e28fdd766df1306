"""What a student can be taught by, one file a method: the equation as a function, then as a module.

Letters: B batch, K classes, C channels, H W grid; C_s student channels, C_t teacher channels.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distill_dynamics.losses.logits import SoftKD as SoftKD
    from distill_dynamics.losses.logits import soft_kd as soft_kd
    from distill_dynamics.losses.projector import ProjectorKD as ProjectorKD
    from distill_dynamics.losses.projector import projector_kd as projector_kd
    from distill_dynamics.losses.spectral import SpectralKD as SpectralKD
    from distill_dynamics.losses.spectral import spectral_kd as spectral_kd

_HOMES = {
    "ProjectorKD": "distill_dynamics.losses.projector",
    "SoftKD": "distill_dynamics.losses.logits",
    "SpectralKD": "distill_dynamics.losses.spectral",
    "projector_kd": "distill_dynamics.losses.projector",
    "soft_kd": "distill_dynamics.losses.logits",
    "spectral_kd": "distill_dynamics.losses.spectral",
}
"""Each name by the module that has it, which is imported when the name is first used."""

__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
