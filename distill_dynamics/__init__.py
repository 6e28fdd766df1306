"""Distil Vision Transformers, and watch why the transfer works or fails."""

from distill_dynamics.errors import UserError
from distill_dynamics.models.backbone import Backbone, Features
from distill_dynamics.train.distiller import Distiller, Term

__all__ = ["Backbone", "Distiller", "Features", "Term", "UserError"]
