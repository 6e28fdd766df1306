"""What the terms of the loss cannot go below, where their losses state it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from distill_dynamics.losses.maps import match_grids
from distill_dynamics.losses.token_statistics import TokenStatistics
from distill_dynamics.models.isolated import isolated
from distill_dynamics.models.teacher import of_teachers
from distill_dynamics.train.dry_run import student_outputs
from distill_dynamics.train.metrics import datamodule
from distill_dynamics.train.reference_images import DrawnOnce

if TYPE_CHECKING:
    from distill_dynamics.train.distiller import Distiller

Place = tuple[str, int]
"""Term, and which of its losses, from 0."""


def loss_floors(distiller: Distiller, reference: DrawnOnce) -> dict[str, float]:
    """By term the mean of its losses' `floor`, where all of them state one.

    `floor` is a number, or a function of the covariance of the teacher's tokens, pooled to the grid that the
    loss sees, and of the student's channels. The tokens are those of the images that losses are fitted to,
    over which each teacher runs once for all its terms, on every rank; where no loss has such a function, not
    at all.
    """
    terms: Any = distiller.terms
    stated: dict[Place, Any] = {
        (name, n): getattr(loss, "floor", None) for name, term in terms.items() for n, loss in enumerate(term)
    }
    of_tokens = [place for place, floor in stated.items() if callable(floor)]
    for place, (covariance, channels) in _covariances(distiller, of_tokens, reference).items():
        stated[place] = stated[place](covariance, channels)
    found: dict[str, list[float]] = {name: [] for name in terms}
    for (name, _), floor in stated.items():
        if isinstance(floor, float | int | Tensor):
            found[name].append(float(floor))
    return {name: sum(of) / len(of) for name, of in found.items() if of and len(of) == len(terms[name])}


def _covariances(
    distiller: Distiller, places: list[Place], reference: DrawnOnce
) -> dict[Place, tuple[Tensor, int]]:
    """Covariance of the teacher's tokens that each of these losses sees, and the student's channels there.

    None of a loss that does not read the maps of both, nor of tokens that do not vary or are not finite.
    """
    data = datamodule(distiller.trainer)
    student_maps = {}
    for name, pair in places:
        blocks = {i.who: i.block for i in distiller.terms[name].inputs[pair] if i.word == "map"}
        if {"student", "teacher"} <= blocks.keys():
            student_maps[name, pair] = ("map", blocks["student"])
    if not student_maps or not hasattr(data, "probe_set"):
        return {}
    student = student_outputs(distiller, data)
    wanted = [one for one in distiller.wanted if (one.term, one.pair) in student_maps and one.word == "map"]
    statistics = {place: TokenStatistics() for place in student_maps}
    plugin = distiller.trainer.precision_plugin
    with isolated(distiller), torch.no_grad():
        for images, _ in reference().batches():
            with plugin.forward_context():
                shown = plugin.convert_input(images).to(distiller.device)
                maps = of_teachers(distiller.teachers, shown, wanted)
            for place, of in statistics.items():
                grid = student[student_maps[place]][:1].expand(len(images), -1, -1, -1)
                of.add(match_grids(grid, maps[*place, "map"])[1])
    return {
        place: (of.result()[1], student[student_maps[place]].shape[1])
        for place, of in statistics.items()
        if of.scatter.isfinite().all() and of.scatter.diagonal().sum() > 0
    }
