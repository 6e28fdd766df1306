"""What a student can be taught by, one file a method: the equation as a function, then as a module.

Letters: B batch, K classes, C channels, H W grid; C_s student channels, C_t teacher channels.
"""

from distill_dynamics.losses.logits import SoftKD, soft_kd
from distill_dynamics.losses.projector import ProjectorKD, projector_kd
from distill_dynamics.losses.spectral import SpectralKD, spectral_kd

__all__ = ["ProjectorKD", "SoftKD", "SpectralKD", "projector_kd", "soft_kd", "spectral_kd"]
