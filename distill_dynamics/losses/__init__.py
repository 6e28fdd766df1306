"""What a student can be taught by, one file a method: the equation as a function, then as a module.

Letters: B batch, K classes, C channels, H W grid; C_s student channels, C_t teacher channels.
"""

from typing import TYPE_CHECKING

from distill_dynamics.lazy import attach

if TYPE_CHECKING:
    from distill_dynamics.losses.cross_entropy import CrossEntropy
    from distill_dynamics.losses.logits import DistilledSoftKD, SoftKD, soft_kd
    from distill_dynamics.losses.projector import ProjectorKD, projector_kd
    from distill_dynamics.losses.spectral import SpectralKD, spectral_kd

_HOMES = {
    "CrossEntropy": "cross_entropy",
    "DistilledSoftKD": "logits",
    "ProjectorKD": "projector",
    "SoftKD": "logits",
    "SpectralKD": "spectral",
    "projector_kd": "projector",
    "soft_kd": "logits",
    "spectral_kd": "spectral",
}
__all__ = [*_HOMES]
__getattr__, __dir__ = attach(__name__, _HOMES)
