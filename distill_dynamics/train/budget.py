"""Equal budgets: a term's weight scaled so that what it spends over a training is a given number."""

from __future__ import annotations

from math import fsum
from typing import TYPE_CHECKING

from distill_dynamics.errors import UserError
from distill_dynamics.train.progress import progress_of_steps

if TYPE_CHECKING:
    from distill_dynamics.train.distiller import Distiller
    from distill_dynamics.train.terms import BoundTerm


def scale(term: BoundTerm, distiller: Distiller) -> float:
    """budget / mean over the training's steps of weight(progress) / mean over the term's pairs of the gate.

    1 without a budget. The steps are all that the trainer is to make, those before a resume too; they are
    known once training begins.

    Raises:
        UserError: a number of steps that is not known; a weight that is 0 in all of them.
    """
    if term.budget is None:
        return 1.0
    if term.scale is None:
        term.scale = term.budget / _average(term, progress_of_steps(distiller.trainer))
    return term.scale


def _average(term: BoundTerm, progress: list[float]) -> float:
    key = f"model.terms.{term.name}.budget"
    if not progress:
        raise UserError(
            f"{key} needs a number of steps that is known: set trainer.max_epochs or max_steps, with data "
            "that tell how many batches they are"
        )
    mean = fsum(map(term.weight_at, progress)) / len(progress) * term.mean_gate
    if mean == 0:
        raise UserError(
            f"{key}: the weight is 0 in each of the {len(progress)} steps, so it cannot be scaled to "
            f"{term.budget:g}"
        )
    return mean
