"""What a student can be taught by, one file a method: the equation as a function, then as a module.

Letters: B batch, K classes, C channels, H W grid; C_s student channels, C_t teacher channels.
"""

from typing import TYPE_CHECKING

from distill_dynamics.lazy import attach

if TYPE_CHECKING:
    from distill_dynamics.losses.attention import AttentionKD
    from distill_dynamics.losses.attention_transfer import AttentionTransfer
    from distill_dynamics.losses.cka import CKA
    from distill_dynamics.losses.cross_entropy import CrossEntropy
    from distill_dynamics.losses.decoupled import DKD
    from distill_dynamics.losses.fitnet import FitNet
    from distill_dynamics.losses.gram import Gram
    from distill_dynamics.losses.hard import HardKD
    from distill_dynamics.losses.logits import DistilledSoftKD, SoftKD, soft_kd
    from distill_dynamics.losses.manifold import Manifold
    from distill_dynamics.losses.masked_generation import MaskedGeneration
    from distill_dynamics.losses.normalised import NKD
    from distill_dynamics.losses.orthogonal import VkD, VkDMap
    from distill_dynamics.losses.pca_target import PCATarget
    from distill_dynamics.losses.pearson import PKD
    from distill_dynamics.losses.phis_target import PHISTarget
    from distill_dynamics.losses.projector import ProjectorKD, projector_kd
    from distill_dynamics.losses.relational import RKD
    from distill_dynamics.losses.relations import DIST
    from distill_dynamics.losses.similarity_preserving import SP
    from distill_dynamics.losses.spectral import SpectralKD, spectral_kd
    from distill_dynamics.losses.standardised import StandardisedKD
    from distill_dynamics.losses.token import ClassTokenKD, PooledKD, TokenKD
    from distill_dynamics.losses.transformed import WTTM

_HOMES = {
    "AttentionKD": "attention",
    "AttentionTransfer": "attention_transfer",
    "CKA": "cka",
    "ClassTokenKD": "token",
    "CrossEntropy": "cross_entropy",
    "DIST": "relations",
    "DKD": "decoupled",
    "DistilledSoftKD": "logits",
    "FitNet": "fitnet",
    "Gram": "gram",
    "HardKD": "hard",
    "Manifold": "manifold",
    "MaskedGeneration": "masked_generation",
    "NKD": "normalised",
    "PCATarget": "pca_target",
    "PHISTarget": "phis_target",
    "PKD": "pearson",
    "PooledKD": "token",
    "ProjectorKD": "projector",
    "RKD": "relational",
    "SP": "similarity_preserving",
    "SoftKD": "logits",
    "SpectralKD": "spectral",
    "StandardisedKD": "standardised",
    "TokenKD": "token",
    "VkD": "orthogonal",
    "VkDMap": "orthogonal",
    "WTTM": "transformed",
    "projector_kd": "projector",
    "soft_kd": "logits",
    "spectral_kd": "spectral",
}
__all__ = [*_HOMES]
__getattr__, __dir__ = attach(__name__, _HOMES)
