"""Gates of terms, computed before the first step from the teacher on the images that losses are fitted to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from distill_dynamics.dynamics import Profile
from distill_dynamics.dynamics.profiler import profile_model
from distill_dynamics.errors import UserError
from distill_dynamics.models.input_size import teacher_side
from distill_dynamics.models.normalise import resized
from distill_dynamics.train.checks import checked
from distill_dynamics.train.metrics import datamodule
from distill_dynamics.train.reference_images import DrawnOnce, ReferenceImages

if TYPE_CHECKING:
    from distill_dynamics.models.backbone import Backbone
    from distill_dynamics.train.distiller import Distiller
    from distill_dynamics.train.terms import BoundTerm

BATCH = 32
"""Images whose activations are held at a time; not a setting, so that no setting changes a gate."""


class _Batches:
    """Images as a teacher takes them; can be gone through repeatedly."""

    def __init__(self, images: ReferenceImages, model: Backbone, side: int) -> None:
        self.images, self.side = images._replace(mean=model.mean, std=model.std, batch_size=BATCH), side

    def __iter__(self) -> Iterator[Tensor]:
        # Without targets: those of images without labels are padding's, which a profile leaves out.
        return (resized(images, self.side) for images, _ in self.images.batches())


def fit_gates(distiller: Distiller, reference: DrawnOnce) -> None:
    """Compute the gates of every term that has one, and give all ranks those of the first.

    All ranks do the work: the numbers do not depend on how many there are, and a sharded teacher answers to
    all or none. Terms with gates alike share a Profile, which is two passes of the teacher over the images.

    Raises:
        UserError: a gate that raises an error, or gives what is none.
    """
    terms: Any = distiller.terms
    profiles: dict[tuple[str, str, int | None], Profile] = {}
    for term in terms.values():
        if term.gate is None:
            continue
        teacher = distiller.teachers[term.teacher].backbone
        side = teacher_side(teacher, datamodule(distiller.trainer))
        widths = {distiller.student.channels[block - 1] for block, _ in term.pairs}
        what = term.teacher, term.gate.value_range, widths.pop() if len(widths) == 1 else None
        if what not in profiles:
            profiles[what] = profile_model(
                teacher, _Batches(reference(), teacher, side), value_range=what[1], student_width=what[2]
            )
        values = _values(term, profiles[what])
        first: Any = distiller.trainer.strategy.broadcast(values)
        term.gates.copy_(first)


def _values(term: BoundTerm, teacher: Profile) -> Tensor:
    """[P] what a gate gives. UserError unless it is a finite number, 0 or more, a pair, not all of them 0."""
    key, gate, pairs = f"terms.{term.name}.gate", term.gate, term.pairs
    assert gate is not None
    kind = type(gate).__name__
    values = checked(key, lambda given: np.asarray(gate(*given), dtype=np.float64), (teacher, [*pairs]))
    if values.shape != (len(pairs),):
        raise UserError(
            f"model.{key}: {kind} gives an array of shape {list(values.shape)}, not a number for each of the "
            f"{len(pairs)} pairs"
        )
    for (student, block), value in zip(pairs, values, strict=True):
        if not (np.isfinite(value) and value >= 0):
            raise UserError(
                f"model.{key}: {kind} gives {value:g} for the pair {student}-{block}: a gate is finite and 0 "
                "or more"
            )
    if not values.any():
        raise UserError(
            f"model.{key}: {kind} gives 0 for every pair ({', '.join(f'{s}-{t}' for s, t in pairs)}), so "
            "nothing is left of the term; give it more pairs (pairs: depth)"
        )
    return torch.from_numpy(values)
