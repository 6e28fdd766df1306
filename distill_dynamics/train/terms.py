"""The terms of the loss. A term's losses say by the names of `forward`'s parameters what they read.

Letters: B batch, C channels, H W grid, N patches, K classes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from distill_dynamics.errors import UserError
from distill_dynamics.models.backbone import Backbone
from distill_dynamics.models.features import BY_BLOCK, Read, TeacherOutputs, Wanted
from distill_dynamics.models.layers import pair_layers
from distill_dynamics.schedule import Schedule
from distill_dynamics.train.checks import check_name_of_term, check_number, check_schedule, checked
from distill_dynamics.train.gates import Gate
from distill_dynamics.train.reads import block_of, class_of, takes_widths, width_of, words_of
from distill_dynamics.train.teachers import name_of_teacher


class MakeLoss(Protocol):
    """Makes a loss: a class, or what a config makes of one."""

    def __call__(self, *, student_channels: int, teacher_channels: int) -> nn.Module:
        """Make the loss of one pair; a class that names no such parameters is not given them."""


@dataclass
class Term:
    """One part of the loss: what is compared, where, and how much it weighs.

    Args:
        loss: the class of the loss, in YAML `{class_path: distill_dynamics.losses.SpectralKD}`, or yours. It
            says what it reads by the names of `forward`'s parameters: `student_` or `teacher_` before `map`
            [B, C, H, W], `prefix` [B, P, C], `class_token` [B, C] or `attention` [B, heads, N, N], each at
            the pairs' blocks, or before `logits` [B, K], `pooled` [B, D] or `dist_logits` [B, K]; `targets`
            [B], `index` [B] (place in the data set), `progress` (share of the training done). If its
            `__init__` begins with student_channels and teacher_channels, it gets the widths of what it reads
            first of each.
        weight: β, a number or a schedule of `progress`; multiplies the mean of the loss over the pairs.
        first: align the first so many student blocks with the teacher's of the same number.
        last: align the last so many with the teacher's of the same rank from the end.
        pairs: or these [student block, teacher block] pairs, numbered from 1, negative from the end; or
            "all", for models equally deep; or "depth": each student block with the teacher's at the same
            share of the depth (`pair_layers`). A loss that reads nothing of blocks takes no pairs.
        gate: multiplies each pair's loss by a number of its own, known before the first step (`gates.py`):
            what a pair weighs is weight(progress) · gate(pair) / pairs. Every pair is computed, one whose
            gate is 0 too, as `train/loss_<term>` is the mean without gates.
        budget: scales the weight so that weight(progress) · gate(pair), averaged over the pairs and over the
            steps of the training, is this number: terms of other schedules and gates then spend what a
            constant weight of this number spends without a gate. `weight` gives the shape alone.
        teacher: name of the one that it reads, of several in `model.teachers`. Left out, it is the one
            `model.teacher`, or the only one that there is.
    """

    loss: MakeLoss
    weight: float | Schedule = 0.2
    first: int = 0
    last: int = 0
    pairs: list[tuple[int, int]] | Literal["all", "depth"] | None = None
    gate: Gate | None = None
    budget: float | None = None
    teacher: str | None = None


class _Input(NamedTuple):
    parameter: str
    who: str
    word: str
    block: int | None


class TermValue(NamedTuple):
    """What a term comes to in a step; both are without its weight."""

    mean: Tensor
    """Of its losses: what is logged."""
    gated: Tensor
    """The mean of its losses, each times its gate: what is trained."""


class BoundTerm(nn.ModuleList):
    """A term between two models: a loss for each pair, or one, and what each reads.

    Raises UserError for a word that no loss can read, a teacher that is not known, pairs or a gate where none
    are taken, and what `__init__` raises.
    """

    gates: Tensor
    """[P] of a term with a gate: what it gave for each pair; 1 before training."""

    def __init__(self, name: str, term: Term, student: Backbone, teachers: Mapping[str, Backbone]) -> None:
        super().__init__()
        check_name_of_term(name)
        check_schedule(f"terms.{name}.weight", term.weight)
        if term.budget is not None:
            check_number(f"terms.{name}.budget", term.budget, above=True)
        self.name, self.weight, self.gate, self.budget = name, term.weight, term.gate, term.budget
        self.mean_gate = 1.0
        self.grids: list[dict[str, tuple[int, ...]]] = []  # of the maps that each loss reads: `dry_run`
        self.scale: float | None = None  # what the budget makes of the weight, once the steps are known
        made_of = class_of(term.loss)
        words = None if made_of is None else words_of(name, made_of)
        self.teacher = _name_of_teacher(name, term, words, teachers)
        teacher = None if self.teacher is None else teachers[self.teacher]
        by_block = any(word in BY_BLOCK for _, word in (words or {}).values())
        if words is None:  # a function: what it reads is seen when it has made a loss
            by_block = bool(term.first or term.last or term.pairs)
        self.pairs = _pairs(name, term, student, teacher or student, by_block)
        if self.gate is not None:
            _check_gate(name, self.pairs, teacher)
            self.gate_settings = _plain(vars(self.gate))  # now: a call of it may leave something there
            self.register_buffer("gates", torch.ones(len(self.pairs)))
        self.inputs: list[list[_Input]] = []
        self.loss_settings: list[dict[str, Any]] = []  # what each was made with
        once: list[tuple[int, int] | None] = [None]
        for pair in self.pairs or once:
            self.append(self._make(term.loss, words, pair, student, teacher))
            self.loss_settings.append(loss_settings(self[-1]))
            read = words or words_of(name, type(self[-1]))
            self.inputs.append(
                [
                    _Input(parameter, who, word, block_of(who, word, pair))
                    for parameter, (who, word) in read.items()
                ]
            )

    def _make(
        self,
        make: Any,
        words: dict[str, tuple[str, str]] | None,
        pair: tuple[int, int] | None,
        student: Backbone,
        teacher: Backbone | None,
    ) -> nn.Module:
        key = f"terms.{self.name}.loss"
        if words is None:
            widths = [width_of("student", "map", pair, student), width_of("teacher", "map", pair, teacher)]
            return checked(key, lambda given: make(*given), widths)
        if not takes_widths(make):
            return checked(key, lambda _: make(), None)
        first = dict(reversed([*words.values()]))
        models = {"student": student, "teacher": teacher}
        given = {
            f"{who}_channels": width_of(who, first.get(who, "logits"), pair, model)
            for who, model in models.items()
        }
        return checked(key, lambda given: make(**given), given)

    def weight_at(self, progress: float) -> float:
        """β there. UserError where a schedule gives a number that is none."""
        if not callable(self.weight):
            return self.weight
        weight = float(self.weight(progress))
        check_number(f"terms.{self.name}.weight, at {progress:.4g} of the training,", weight)
        return weight

    @property
    def weight_is_told(self) -> bool:
        """Whether the config tells what it weighs: it has no schedule, no gate and no budget."""
        return not callable(self.weight) and self.gate is None and self.budget is None

    def begin(self) -> None:
        """Take from its gates, computed or of a checkpoint, what no step is to ask a device for."""
        self.mean_gate = 1.0 if self.gate is None else self.gates.cpu().double().mean().item()
        self.scale = None

    def of_student(self) -> set[Read]:
        """What its losses read of the student."""
        return {(i.word, i.block) for inputs in self.inputs for i in inputs if i.who == "student"}

    def of_teacher(self) -> list[Wanted]:
        """What its losses read of the teacher."""
        return [
            Wanted(self.name, pair, i.word, i.block, self.teacher or "")
            for pair, inputs in enumerate(self.inputs)
            for i in inputs
            if i.who == "teacher"
        ]

    def forward(
        self, student: Mapping[Read, Tensor], teacher: TeacherOutputs, batch: Mapping[str, Any]
    ) -> TermValue:
        """Run its losses."""
        values = []
        for pair, (loss, inputs) in enumerate(zip(self, self.inputs, strict=True)):
            given = {
                parameter: student[word, block]
                if who == "student"
                else teacher[self.name, pair, word]
                if who == "teacher"
                else batch[word]
                for parameter, who, word, block in inputs
            }
            values.append(loss(**given))
        mean = sum(values) / len(values)
        if self.gate is None:
            return TermValue(mean, mean)
        gated = sum(gate * value for gate, value in zip(self.gates, values, strict=True))
        return TermValue(mean, gated / len(values))


def loss_settings(loss: nn.Module) -> dict[str, Any]:
    """The public attributes of a loss that has `fit`, as it is made; what it is left with later is none."""
    own = vars(loss) if hasattr(loss, "fit") else {}
    return _plain({name: v for name, v in own.items() if not name.startswith("_") and name != "training"})


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """As a file gives them back; of what is no plain value the name of its type."""
    return json.loads(json.dumps(values, skipkeys=True, default=lambda value: type(value).__name__))


def _name_of_teacher(
    name: str, term: Term, words: Mapping[str, tuple[str, str]] | None, teachers: Mapping[str, Backbone]
) -> str | None:
    """Whose pairs they are and what is read; None without teachers, or where none of several is read.

    UserError where a loss that reads these words has no teacher, or names one without need. What a function
    makes is taken to read one.
    """
    reads = words is None or any(who == "teacher" for who, _ in words.values())
    if words is not None and reads and not teachers:
        raise UserError(
            f"model.terms.{name}: its loss reads the teacher, and there is none: without one, terms read "
            "the student and the batch alone, and alpha must be 0 (or left out)"
        )
    if term.teacher is not None and not reads and term.gate is None:
        raise UserError(
            f"model.terms.{name}: its loss reads no teacher, so leave out teacher: {term.teacher}"
        )
    if not reads and term.teacher is None and len(teachers) > 1 and "" not in teachers:
        return None
    return name_of_teacher(name, term.teacher, teachers)


def _pairs(
    name: str, term: Term, student: Backbone, teacher: Backbone, by_block: bool
) -> list[tuple[int, int]]:
    if not by_block:
        if term.first or term.last or term.pairs:
            raise UserError(
                f"model.terms.{name}: its loss reads nothing of blocks, so it takes no first, last or pairs"
            )
        return []
    for backbone in (student, teacher):
        backbone.resolve_layers("all")  # refuses a model without intermediates
    try:
        return pair_layers(len(student.layers), len(teacher.layers), term.first, term.last, term.pairs)
    except UserError as error:
        raise UserError(f"model.terms.{name}: {error}") from error


def _check_gate(name: str, pairs: list[tuple[int, int]], teacher: Backbone | None) -> None:
    if not pairs:
        raise UserError(f"model.terms.{name}: its loss reads nothing of blocks, so it takes no gate")
    if teacher is None:
        raise UserError(
            f"model.terms.{name}.gate: a gate is made of the teacher, and there is none: leave it out"
        )


def of_student(terms: Sequence[BoundTerm]) -> set[Read]:
    """What these terms read of the student."""
    return set().union(*(term.of_student() for term in terms))


def of_teacher(terms: Sequence[BoundTerm]) -> list[Wanted]:
    """What these terms read of the teacher."""
    return [wanted for term in terms for wanted in term.of_teacher()]
