"""What half precision changes in a teacher's answers, beside the same teacher in float32."""

from __future__ import annotations

from collections.abc import Collection

from lightning.pytorch import Trainer

from distill_dynamics.losses.logits import soft_kd, soft_kd_top, top_classes
from distill_dynamics.models.features import LOGITS, Read, read
from distill_dynamics.models.input_size import of_side, teacher_side
from distill_dynamics.models.isolated import isolated
from distill_dynamics.models.teacher import Teacher
from distill_dynamics.train.metrics import datamodule

IMAGES = 32
"""How many: a probe set of validation images."""


def precision_error(
    teacher: Teacher, trainer: Trainer, reads: Collection[Read], top_k: int | None = None
) -> str:
    """One line for the user; empty where the teacher computes in float32, or has no float32 to compare with.

    The loss is SoftKD (T = 1) of a student that answers as the teacher does in float32: 0 would be no error.
    With `top_k` it is that of a cached view, of which so many classes are kept. Of other things that are
    read the line has the largest difference, relative, in the root mean square.
    """
    data, precision = datamodule(trainer), teacher.precision or str(trainer.precision)
    if not precision.endswith("-mixed") or teacher.sharded or not hasattr(data, "probe_set") or not reads:
        return ""
    device = trainer.strategy.root_device
    own = of_side(data, teacher_side(teacher.backbone, data))
    images = data.probe_set(IMAGES, at_most=True, **own).normalised(data.mean, data.std).to(device)
    with trainer.precision_plugin.forward_context():
        half = teacher.read(images, reads)
    with isolated(teacher.backbone):
        exact = read(teacher.backbone, teacher.images(images), reads)
    parts = []
    if LOGITS in exact:
        student, answers = exact[LOGITS], half[LOGITS]
        if top_k is None:
            what, loss = "loss", soft_kd(student, answers)
        else:
            what, loss = "loss of a cached view", soft_kd_top(student, top_classes(answers, top_k))
        same = (student.argmax(1) == answers.argmax(1)).sum().item()
        parts = [f"{what} {loss.item():.2g} where it would be 0", f"top-1 equal for {same}"]
    others = [(half[one].float() - exact[one]).norm() / exact[one].norm() for one in exact if one != LOGITS]
    if others:
        parts.append(f"features within {100 * max(others).item():.2g} %")
    return f"{precision} beside float32, {len(images)} images: {', '.join(parts)}"
