"""A model of which the head alone is trained, on features that stay what they are: a linear probe."""

from __future__ import annotations

from typing import Any

from torch import nn

from distill_dynamics.errors import UserError
from distill_dynamics.models.readable import single_head


class Freezable(nn.Module):
    """A model whose weights can be kept as they are, but for its head's; `Backbone` is one."""

    frozen = False
    """Whether that is so. `features.read` then records no gradients before the head."""

    def freeze(self) -> None:
        """Train the head alone; all stays in eval mode, so nothing is dropped and no average is updated.

        UserError for a model without weights of its own, and for one that has not one head.
        """
        student: Any = self
        if not student.num_classes:
            raise UserError(f"{student.name} has no head (num_classes: 0), which alone would be trained")
        if not student.has_weights:
            raise UserError(
                f"{student.name} has no weights, and would stay as it was drawn: give checkpoint: FILE (a "
                "run's student/ folder for one), or pretrained: true"
            )
        if (head := single_head(student.model)) is None:
            raise UserError(f"{student.name} has two heads, and one is needed: take the model without")
        self.requires_grad_(False)
        head.requires_grad_(True)
        self.frozen = True
        self.train(self.training)

    def train(self, mode: bool = True) -> Freezable:
        """Training mode, which one that is frozen does not take."""
        return super().train(mode and not self.frozen)
