"""Losses that fit something to the teacher's answers before training: a basis, a mean."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from distill_dynamics.models.features import Read, TeacherOutputs
from distill_dynamics.models.isolated import isolated
from distill_dynamics.train.checks import checked
from distill_dynamics.train.dry_run import student_outputs
from distill_dynamics.train.metrics import datamodule
from distill_dynamics.train.reference_images import DrawnOnce, ReferenceImages

if TYPE_CHECKING:
    from distill_dynamics.train.distiller import Distiller
    from distill_dynamics.train.terms import BoundTerm


class TeacherBatches:
    """What one loss reads of the teacher and of the batch, a dict a batch; can be gone through repeatedly.

    The teacher runs anew each time. Of the student's map, where the loss reads one, the shape alone counts.
    """

    def __init__(
        self,
        distiller: Distiller,
        term: BoundTerm,
        pair: int,
        images: ReferenceImages,
        student: Mapping[Read, Tensor],
    ) -> None:
        self.distiller, self.images, self.student = distiller, images, student
        self.wanted = [wanted for wanted in term.of_teacher() if wanted.pair == pair]
        self.inputs = term.inputs[pair]

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        distiller = self.distiller
        device, plugin = distiller.device, distiller.trainer.precision_plugin
        for images, targets in self.images.batches():
            found: TeacherOutputs = {}
            if self.wanted:
                teacher = distiller.teachers[self.wanted[0].teacher]
                with plugin.forward_context():  # not around what the loss does with it
                    found = teacher(plugin.convert_input(images).to(device), self.wanted)
            by_word = {word: value for (_, _, word), value in found.items()}
            given = {}
            for parameter, who, word, block in self.inputs:
                if who == "teacher":
                    given[parameter] = by_word[word]
                elif word == "map" and (word, block) in self.student:
                    given[parameter] = self.student[word, block][:1].expand(len(images), -1, -1, -1)
                elif word == "targets":
                    given[parameter] = targets.to(device)
            yield given


def fit_losses(distiller: Distiller, reference: DrawnOnce, terms: Mapping[str, Any]) -> None:
    """Call `fit(batches)` of every loss of these terms that has it, and give all what the first rank came to.

    All ranks do the work, as a sharded teacher answers to all or none.
    """
    if not any(hasattr(loss, "fit") for term in terms.values() for loss in term):
        return
    student = student_outputs(distiller, datamodule(distiller.trainer))
    for term_name, term in terms.items():
        for pair, loss in enumerate(term):
            if not hasattr(loss, "fit"):
                continue
            before = {name: value.clone() for name, value in loss.named_parameters()}
            batches = TeacherBatches(distiller, term, pair, reference(), student)
            with isolated(distiller), torch.no_grad():
                checked(f"terms.{term_name}.loss", loss.fit, batches)
            first: Any = distiller.trainer.strategy.broadcast(loss.state_dict())
            loss.load_state_dict(first)
            after = dict(loss.named_parameters())
            loss.fitted_parameters = {n for n, value in before.items() if not torch.equal(value, after[n])}
