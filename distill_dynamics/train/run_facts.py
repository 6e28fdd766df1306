"""What a checkpoint says of a run beside the weights: its student, its teacher, its gates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from distill_dynamics.errors import UserError
from distill_dynamics.train.checks import check_weights

if TYPE_CHECKING:
    from distill_dynamics.train.distiller import Distiller


def facts_to_save(distiller: Distiller) -> dict[str, Any]:
    """Plain values: what builds the student again, the teachers' accuracy, what the gates were made by."""
    teacher = distiller.teacher
    named = {n: {"facts": t.facts(), "accuracy": t.accuracy} for n, t in distiller.teachers.items() if n}
    return {
        "student": distiller.student.description(),
        "teacher_accuracy": teacher.accuracy if teacher else {},
        "teacher": teacher.facts() if teacher else None,
        **({"teachers": named, "first_teacher": teacher.name} if teacher and named else {}),
        "settings": distiller.optimisation.settings,
        "gates": _gates(distiller),
        "freeze_backbone": distiller.student.frozen,
    }


def take_facts(distiller: Distiller, checkpoint: Mapping[str, Any]) -> None:
    """Take the accuracy of the same teacher. UserError for a checkpoint of another model or other gates."""
    if "distill_dynamics" not in checkpoint:
        raise UserError(
            "ckpt_path: not a checkpoint of this project's fit, so no run to continue; "
            "to start from its weights, name it as model.student.checkpoint"
        )
    saved = checkpoint["distill_dynamics"]
    was, now = saved.get("gates", {}), _gates(distiller)
    for name in distiller.terms:
        if was.get(name) != now.get(name):
            raise UserError(
                f"ckpt_path: model.terms.{name}.gate was {_told(was.get(name))} and is "
                f"{_told(now.get(name))}: give what the run had, or begin a new one"
            )
    check_weights(distiller, checkpoint)
    frozen = saved.get("freeze_backbone", False)
    if frozen != distiller.student.frozen and distiller.trainer.state.fn == "fit":
        raise UserError(
            f"ckpt_path: model.freeze_backbone was {str(frozen).lower()}: give what the run had, or begin a "
            "new one from its weights (model.student.checkpoint)"
        )
    if distiller.teacher is not None and distiller.trainer.state.fn == "fit":
        first, was_first = distiller.teacher.name, saved.get("first_teacher")
        if was_first not in (None, first):
            raise UserError(
                "ckpt_path: the first teacher, which files and metrics call teacher, was "
                f"{was_first or 'model.teacher'} and is {first or 'model.teacher'}: give them in the order "
                "that the run had"
            )
    for name, teacher in distiller.teachers.items():
        facts, its = teacher.facts(), saved.get("teachers", {}).get(name)
        if its is not None and its["facts"] == facts:
            teacher.accuracy = its["accuracy"]
        elif teacher is distiller.teacher and saved.get("teacher", facts) == facts:
            teacher.accuracy = saved["teacher_accuracy"]


def _gates(distiller: Distiller) -> dict[str, dict[str, Any]]:
    """By term, what its gate's numbers follow from, beside teacher and data."""
    terms: Any = distiller.terms
    return {
        name: {
            "gate": type(term.gate).__name__,
            "settings": term.gate_settings,
            "pairs": [[*pair] for pair in term.pairs],
        }
        for name, term in terms.items()
        if term.gate is not None
    }


def _told(facts: Mapping[str, Any] | None) -> str:
    if facts is None:
        return "null"
    settings = ", ".join(f"{name}: {value}" for name, value in facts["settings"].items())
    pairs = ", ".join(f"{student}-{teacher}" for student, teacher in facts["pairs"])
    return facts["gate"] + (f" ({settings})" if settings else "") + f" at {pairs}"
