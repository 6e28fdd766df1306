"""Whether a teacher is worth learning from: its accuracy, and under which normalisation it was measured."""

from __future__ import annotations

from typing import Any

from distill_dynamics.models.backbone import Backbone

SHORTFALL = 2.0
"""Points of top-1 below what its file says that are taken for a mistake."""


def near_chance(acc1: float, classes: int) -> bool:
    """Whether top-1, in percent, is less than a tenth of the way from chance to 100."""
    chance = 100.0 / classes
    return acc1 < chance + 0.1 * (100.0 - chance)


def normalisation(backbone: Backbone) -> str:
    """Mean and std, and where they are from."""
    where = {
        "given": "as given",
        "weights": "as its weights say",
        "timm": "timm's for the name",
        "data": "the data's",
    }[backbone.normalised_by]
    mean, std = (" ".join(f"{value:g}" for value in values) for values in (backbone.mean, backbone.std))
    return f"mean {mean}, std {std} ({where})"


def accuracy_line(teacher: Backbone, accuracy: dict[str, float], data: Any) -> str:
    """For the start block: top-1 if it was measured, and what its images were like."""
    measured = "not measured, as alpha is 0" if data.num_classes else "no accuracy: no classes"
    if accuracy:
        measured = f"{accuracy['acc1']:.2f} % top-1"
        if teacher.stated_accuracy is not None:
            measured += f" (its file: {teacher.stated_accuracy:.2f})"
    own, crop = teacher.evaluation.crop_pct, getattr(data, "crop_pct", None)
    known = teacher.given_crop_pct or teacher.normalised_by == "weights"
    cropped = f"; its own crop is {own:g}, the data's {crop:g}" if known and crop not in (None, own) else ""
    return f"{measured}, {normalisation(teacher)}{cropped}"


def doubt(teacher: Backbone, accuracy: dict[str, float]) -> str | None:
    """What is wrong with a teacher that was measured, in one line; None if nothing is."""
    if not accuracy:
        return None
    acc1, stated = accuracy["acc1"], teacher.stated_accuracy
    if near_chance(acc1, teacher.num_classes):
        problem = f"near chance ({100 / teacher.num_classes:.2f} %)"
    elif stated is not None and acc1 < stated - SHORTFALL:
        problem = f"and its file says {stated:.2f} %"
    else:
        return None
    return (
        f"the teacher has {acc1:.2f} % top-1 on the validation images, {problem}. It was shown images under "
        f"{normalisation(teacher)}. The student will learn what it answers: look at model.teacher.mean and "
        "std, its weights, and the order of its classes"
    )


def framed(warning: str) -> str:
    """A warning that is not overlooked in a terminal."""
    line = "!" * 80
    return f"{line}\nWARNING: {warning}\n{line}"
