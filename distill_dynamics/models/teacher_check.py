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
    measured = "not measured, as no term reads its logits" if data.num_classes else "not measured: no classes"
    if getattr(getattr(data, "trainer", None), "limit_val_batches", 1.0) == 0:
        measured = "not measured, as trainer.limit_val_batches is 0"
    if "knn1" in accuracy:
        measured = quality_text(accuracy, len(data.val_classes))
    elif accuracy:
        measured = f"{accuracy['acc1']:.2f} % top-1"
        if teacher.stated_accuracy is not None:
            measured += f" (its file: {teacher.stated_accuracy:.2f})"
    own, crop = teacher.evaluation.crop_pct, getattr(data, "crop_pct", None)
    known = teacher.given_crop_pct or teacher.normalised_by == "weights"
    cropped = f"; its own crop is {own:g}, the data's {crop:g}" if known and crop not in (None, own) else ""
    return f"{measured}, {normalisation(teacher)}{cropped}"


def images_measured(data: Any) -> int | None:
    """How many validation images `limit_val_batches` leaves; None for all of them."""
    trainer: Any = getattr(data, "trainer", None)
    limit = 1.0 if trainer is None else trainer.limit_val_batches
    if isinstance(limit, int):
        return max(1, limit * getattr(data, "eval_batch_size", data.batch_size) * trainer.world_size)
    return None if limit == 1.0 else max(1, int(limit * len(data.val_dataloader().dataset)))


def quality_text(quality: dict[str, float], classes: int) -> str:
    """How good features are, in words; `classes` are those of the validation images."""
    knn1, linear1, rank = (quality[name] for name in ("knn1", "linear1", "effective_rank"))
    top1 = f"{knn1:.2f} % kNN top-1, {linear1:.2f} % linear (chance {100 / classes:.2f} %)"
    return f"{top1}, effective rank {rank:.1f}"


def doubt(
    teacher: Backbone,
    accuracy: dict[str, float],
    val_classes: int = 0,
    key: str = "model.teacher",
    title: str = "teacher",
    images: int | None = None,
) -> str | None:
    """What is wrong with a teacher that was measured, in one line; None if nothing is.

    `val_classes` is how many classes the validation images have; of its features alone it is needed. `key` is
    the teacher's place in a config, `title` what it is called. What its file says is of all images: where
    it was measured on some of them (`images`), three standard errors are no shortfall.
    """
    if not accuracy:
        return None
    if "knn1" in accuracy:
        if not near_chance(accuracy["knn1"], val_classes):
            return None
        return (
            f"the {title} has {accuracy['knn1']:.2f} % kNN top-1 on the validation images, near chance "
            f"({100 / val_classes:.2f} %). It was shown images under {normalisation(teacher)}. The student "
            f"will learn its features: look at {key}.mean and std, and at its weights"
        )
    acc1, stated = accuracy["acc1"], teacher.stated_accuracy
    chance = 0.0 if images is None or stated is None else 3 * (stated * (100 - stated) / images) ** 0.5
    if near_chance(acc1, teacher.num_classes):
        problem = f"near chance ({100 / teacher.num_classes:.2f} %)"
    elif stated is not None and acc1 < stated - SHORTFALL - chance:
        problem = f"and its file says {stated:.2f} %"
    else:
        return None
    return (
        f"the {title} has {acc1:.2f} % top-1 on the validation images, {problem}. It was shown images under "
        f"{normalisation(teacher)}. The student will learn what it answers: look at {key}.mean and "
        "std, its weights, and the order of its classes"
    )


def framed(warning: str) -> str:
    """A warning that is not overlooked in a terminal."""
    line = "!" * 80
    return f"{line}\nWARNING: {warning}\n{line}"
