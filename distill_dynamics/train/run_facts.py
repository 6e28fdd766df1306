"""What a checkpoint says of a run beside the weights: its student, its teacher, its gates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from distill_dynamics.errors import UserError
from distill_dynamics.train.checks import check_weights
from distill_dynamics.train.optimise import print_line
from distill_dynamics.train.settings import differing

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
        **({"validated_on": distiller.validated_on} if distiller.validated_on else {}),
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
    if distiller.trainer.state.fn == "fit":
        _take_accuracies(distiller, saved)


def _take_accuracies(distiller: Distiller, saved: Mapping[str, Any]) -> None:
    """Those of the same teachers on the same images. A line on stderr where these, or teachers, are others.

    UserError where another of several is the first.
    """
    first, was_first = next(iter(distiller.teachers), None), saved.get("first_teacher")
    if None not in (first, was_first) and was_first != first:
        raise UserError(
            "ckpt_path: the first teacher, which files and metrics call teacher, was "
            f"{was_first or 'model.teacher'} and is {first or 'model.teacher'}: give them in the order "
            "that the run had"
        )
    now = distiller.validated_on
    images = saved.get("validated_on", now)  # an earlier version's do not say; nor does it of its teacher
    if images != now and (images.get("images"), now.get("images")) != (None, None):
        print_line(
            "goes on with other validation images than those of its checkpoint: "
            f"{_changes(images, now, [*images | now])}; val/* before and after it do not compare"
        )
    known = {was_first or "": (saved.get("teacher", {}), saved["teacher_accuracy"])}
    known |= {name: (of["facts"], of["accuracy"]) for name, of in saved.get("teachers", {}).items()}
    told = []
    for name, teacher in distiller.teachers.items():
        was, accuracy = known.pop(name, (None, {}))
        here = teacher.facts()
        if was is None:
            told.append(f"{teacher.key} is new")
        elif changed := _changes(was, here, _of_both(was, here)):
            told.append(f"{teacher.key}: {changed}")
        elif images == now:
            teacher.accuracy = accuracy
    told += [f"model.teacher{f's.{name}' if name else ''} is gone" for name, (was, _) in known.items() if was]
    if told:
        print_line(f"goes on with other teachers than those of its checkpoint: {'; '.join(told)}")


def _of_both(was: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Names of a teacher's facts that differ. Files may move, and a sharded one has no digest."""
    digests = was.get("digest"), here["digest"]
    out = {"weights"} if None not in digests else {"digest"}
    return [name for name in differing(was, here) if name not in out]


def _changes(was: Mapping[str, Any], now: Mapping[str, Any], names: Iterable[str]) -> str:
    return ", ".join(
        f"{name} {was.get(name)}, now {now.get(name)}" for name in names if was.get(name) != now.get(name)
    )


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
