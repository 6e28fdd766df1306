"""The two terms that `alpha` writes: `ce` and `kd`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from distill_dynamics.errors import UserError
from distill_dynamics.losses import CrossEntropy, SoftKD
from distill_dynamics.models.backbone import Backbone
from distill_dynamics.schedule import Schedule
from distill_dynamics.train.terms import Term


def with_standard(
    terms: Mapping[str, Term | None],
    alpha: float,
    temperature: float | Schedule,
    label_smoothing: float,
    student: Backbone,
    teachers: Mapping[str, Backbone],
) -> dict[str, Term]:
    """The terms of a config after `ce` and `kd`, which α writes; one of that name replaces it, None removes.

    Without classes neither is written, with α = 0 no `kd`. Raises UserError for a setting of one that is
    replaced, or not written, and for an α without the teacher that `kd` reads.
    """
    if student.num_classes == 0 and (alpha or temperature != 1.0 or label_smoothing != 0.1):
        raise UserError(
            "model.alpha, temperature and label_smoothing are of ce and kd, and a student without classes "
            "has neither: leave them out"
        )
    if alpha and not teachers:
        raise UserError("model: without a teacher no terms can read one, and alpha must be 0 (or left out)")
    if alpha and "" not in teachers:
        raise UserError(
            f"model.alpha is the share of model.teacher, and here are model.teachers alone: leave it out and "
            f"write a term, kd: {{loss: SoftKD, weight: {alpha:g}, teacher: {next(iter(teachers))}}}"
        )
    for name, key, value, default in (
        ("kd", "temperature", temperature, 1.0),
        ("ce", "label_smoothing", label_smoothing, 0.1),
    ):
        if name in terms and value != default:
            raise UserError(
                f"model.{key} is of the {name} that alpha writes, and model.terms.{name} replaces it"
            )
    written: dict[str, Term | None] = {}
    if student.num_classes > 0:
        written["ce"] = Term(partial(CrossEntropy, label_smoothing), 1 - alpha)
    if student.num_classes > 0 and alpha > 0:
        written["kd"] = Term(partial(SoftKD, temperature), alpha)
    return {name: term for name, term in (written | dict(terms)).items() if term is not None}
