"""Distil Vision Transformers, and watch why the transfer works or fails."""

from distill_dynamics.backbone import Backbone, Features
from distill_dynamics.distiller import Distiller, Term
from distill_dynamics.errors import UserError

__all__ = ["Backbone", "Distiller", "Features", "Term", "UserError"]
