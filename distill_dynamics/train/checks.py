"""What is looked at before the first step, so that a mistake costs a line: settings, data, resuming."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, get_args

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import nn
from torch.optim import Optimizer

from distill_dynamics.errors import UserError, at, first_line
from distill_dynamics.models.backbone import Backbone
from distill_dynamics.models.eval_transform import EvalTransform
from distill_dynamics.models.input_size import check_patches, teacher_side
from distill_dynamics.models.teacher import Precision, Teacher
from distill_dynamics.schedule import sampled
from distill_dynamics.train.quality import check_labelled

if TYPE_CHECKING:
    from distill_dynamics.train.distiller import Distiller


def check_number(key: str, value: Any, least: float = 0, most: float = math.inf, above: bool = False) -> None:
    """UserError unless `value` is a finite number from `least` (or, with `above`, more) to `most`."""
    if not math.isfinite(value) or not least <= value <= most or (above and value == least):
        wanted = f"more than {least:g}" if above else f"at least {least:g}"
        wanted = f"between {least:g} and {most:g}" if most < math.inf else f"{wanted} and finite"
        raise UserError(f"model.{key} must be {wanted}, not {value}")


def check_name_of_term(name: str) -> None:
    """UserError for a term's name that cannot be a module's, or a metric's."""
    taken = hasattr(nn.ModuleDict, name)
    if taken or not name.strip() or any(c in "./" or not c.isprintable() for c in name):
        why = "is taken" if taken else "is no name of a metric"
        raise UserError(f"model.terms: the name {name!r} {why}, choose another, of letters, digits and _")


def check_schedule(key: str, value: Any, least: float = 0, above: bool = False) -> None:
    """`check_number` for a number, or for what a schedule gives at some places of the training."""
    for number in sampled(value):
        check_number(key, number, least=least, above=above)


def check_arguments(alpha: float, temperature: Any, label_smoothing: float, lr_images: int | None) -> None:
    """UserError for numbers of a Distiller that are none."""
    if not 0 <= alpha <= 1:
        raise UserError(f"model.alpha is a share, between 0 and 1, not {alpha}")
    check_schedule("temperature", temperature, above=True)
    check_number("label_smoothing", label_smoothing, most=1)
    if lr_images is not None:
        check_number("lr_images", lr_images, least=1)


def freeze(student: Backbone, terms: Mapping[str, Any]) -> None:
    """Have the student's head alone trained. UserError for a term that reads what is then not trained."""
    for name, term in terms.items():
        for word, _ in term.of_student():
            if word not in ("logits", "dist_logits"):
                raise UserError(
                    f"model.freeze_backbone: term {name} reads the student's {word}, which is not trained "
                    f"then: leave the term out (model.terms.{name}: null), or freeze_backbone"
                )
    with at("model.freeze_backbone: model.student"):
        student.freeze()


def checked(key: str, make: Callable[[Any], Any], what: Any) -> Any:
    """What `make` makes of `what`. UserError, naming the key, for what it raises."""
    try:
        return make(what)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError) as error:
        raise UserError(f"model.{key}: {first_line(error)}") from error


def check_optimizer(optimizer: Any) -> None:
    """UserError for what is no optimiser, or has a rate or another setting that is no finite number."""
    if not isinstance(optimizer, Optimizer):
        raise UserError(f"model.optimizer makes a {type(optimizer).__name__}, which is no optimiser")
    for group in optimizer.param_groups:
        for name, value in group.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise UserError(f"model.optimizer: {name} must be a finite number, not {value}")


# --- data and trainer ---------------------------------------------------------------------------------


def check_length(trainer: Trainer) -> None:
    """UserError for a trainer that trains nothing; a warning for one that would not measure it."""
    for name in ("max_epochs", "max_steps", "limit_train_batches"):
        if getattr(trainer, name) == 0:
            raise UserError(
                f"trainer.{name} is 0: nothing would be trained (validate measures a model as it is)"
            )
    if trainer.limit_val_batches == 0:
        rank_zero_warn(
            "trainer.limit_val_batches is 0: nothing is measured, so there is no best.ckpt, and the last "
            "student is exported"
        )
    if trainer.val_check_interval != 1.0:
        rank_zero_warn(
            "trainer.val_check_interval: what is measured within an epoch is for callbacks and the bar; "
            "metrics.csv and best.ckpt have what is measured at its end"
        )


def check_data(distiller: Distiller, data: Any, stage: str) -> None:
    """UserError where the data do not fit the models. A student without weights takes their normalisation."""
    wanted = ("mean", "std", "num_classes", "image_size", "batch_size")
    if lacking := [name for name in wanted if not hasattr(data, name)]:
        raise UserError(
            f"data: the DataModule has no {lacking[0]}; Distiller needs mean, std, num_classes, "
            "image_size and batch_size (those of distill_dynamics.data have them)"
        )
    student = distiller.student
    if stage == "fit" and not any(weights.requires_grad for weights in student.parameters()):
        raise UserError(
            "model.student: none of its weights is to be trained; one Backbone cannot be student and "
            "teacher, as a teacher's are frozen"
        )
    if not student.has_weights and student.normalised_by != "given":
        student.set_normalisation(data.mean, data.std)
        student.normalised_by = "data"
    crop = getattr(data, "crop_pct", student.evaluation.crop_pct)
    if student.given_crop_pct and student.evaluation.crop_pct != crop:
        raise UserError(
            f"model.student.crop_pct is {student.evaluation.crop_pct:g} and data.crop_pct {crop:g}: "
            "it is trained and validated on the data's images; set data.init_args.crop_pct"
        )
    size = (data.image_size, data.image_size)
    interpolation = getattr(data, "interpolation", student.evaluation.interpolation)
    student.evaluation = EvalTransform(size, crop, interpolation)
    if not data.num_classes:
        _check_without_classes(distiller)
        check_labelled(data)
    if student.num_classes != data.num_classes:
        raise UserError(
            f"model.student has {student.num_classes} classes and the data {data.num_classes}; "
            f"set model.student.timm_kwargs.num_classes: {data.num_classes}"
        )
    _check_input("model.student", student, data, data.image_size)
    for teacher in distiller.teachers.values():
        _check_teacher(distiller, teacher, data, stage)
    if "index" in distiller.reads_of_batch() and not hasattr(data, "indexed"):
        raise UserError(
            "data: the DataModule gives no place in the data set, which a term reads as index (those of "
            "distill_dynamics.data do)"
        )


def _check_without_classes(distiller: Distiller) -> None:
    """UserError for what needs the classes that the data do not have."""
    if distiller.student.num_classes:
        raise UserError(
            f"model.student has {distiller.student.num_classes} classes and the data none: set "
            "model.student.timm_kwargs.num_classes: 0"
        )
    for name, term in distiller.terms.items():
        for one in (one for inputs in term.inputs for one in inputs):
            if one.word in ("targets", "logits", "dist_logits"):
                raise UserError(
                    f"model.terms.{name}: its loss reads {one.parameter}, and the data have no classes: take "
                    "a loss of map, prefix, class_token, attention or pooled"
                )


def _check_teacher(distiller: Distiller, teacher: Teacher, data: Any, stage: str) -> None:
    key, backbone, trainer = teacher.key, teacher.backbone, distiller.trainer
    if teacher.precision and trainer.precision not in get_args(Precision):
        raise UserError(
            f"{teacher.key_of('precision')}: with trainer.precision {trainer.precision} the teacher's "
            f"weights have that one too; leave it out, or set there {' or '.join(get_args(Precision))}"
        )
    reads_logits = any(word in ("logits", "dist_logits") for word, _ in distiller.teacher_reads(teacher.name))
    without = "leave out the terms that read them" if teacher.name else "model.alpha: 0"
    if reads_logits and backbone.num_classes != distiller.student.num_classes:
        raise UserError(
            f"{key} has {backbone.num_classes} classes and the student {distiller.student.num_classes}: "
            f"terms that read its logits, as SoftKD does, need the same classes (or {without})"
        )
    if reads_logits and stage in ("fit", "predict") and backbone.new_head:
        heads = {
            "no head": "no head",
            "other classes": f"a head of other classes than the {data.num_classes} here",
        }
        raise UserError(
            f"{key}: its weights ({backbone.source}) have {heads[backbone.new_head]}, and one made anew "
            f"answers at random: train it on these images first, or leave its logits out ({without})"
        )
    _check_input(key, backbone, data, teacher_side(backbone, data))
    if stage == "fit" and teacher.sharded:
        check_sharding(trainer, teacher.key_of("shard"))


def _check_input(key: str, backbone: Backbone, data: Any, side: int) -> None:
    with at(key):
        backbone.check_input(len(data.mean), side)
        if side != data.image_size:  # of one that equals, an old run was trained
            check_patches(backbone, side)


def check_sharding(trainer: Trainer, key: str = "model.shard_teacher") -> None:
    """UserError unless there are several devices to share a teacher out over."""
    if not isinstance(trainer.strategy, DDPStrategy) or trainer.world_size < 2:
        raise UserError(
            f"{key} shares the teacher out over several devices: set trainer.strategy: ddp and "
            f"trainer.devices or trainer.num_nodes to 2 or more, or {key}: false"
        )


# --- resuming -----------------------------------------------------------------------------------------


def check_weights(distiller: Distiller, checkpoint: Mapping[str, Any]) -> None:
    """UserError, saying what differs, if a checkpoint's weights are not those of this model and its terms."""
    was = {name: tuple(value.shape) for name, value in checkpoint["state_dict"].items()}
    now = {name: tuple(value.shape) for name, value in distiller.state_dict().items()}
    if was == now:
        return
    differs = sorted(name for name in was | now if was.get(name) != now.get(name))
    said = (
        _settings_of_student(distiller, checkpoint) if any(n.startswith("student.") for n in differs) else []
    )
    for term in sorted({name.split(".")[1] for name in differs if name.startswith("terms.")}):
        of_term = [name for name in differs if name.startswith(f"terms.{term}.")]
        kind = (any(name in was for name in of_term), any(name in now for name in of_term))
        said.append(
            f"model.terms.{term} "
            + {(False, True): "was added", (True, False): "was left out"}.get(
                kind, "has other pairs or another loss"
            )
        )
    if not said:
        name = differs[0]
        said = [f"{name} was {was.get(name, 'not there')} and is {now.get(name, 'not there')}"]
    raise UserError(
        f"ckpt_path: not a checkpoint of this model: {'; '.join(said)}. Give what the run had, or begin "
        "a new one (model.student.checkpoint takes a student's weights alone)"
    )


def _settings_of_student(distiller: Distiller, checkpoint: Mapping[str, Any]) -> list[str]:
    was, now = checkpoint["distill_dynamics"]["student"], distiller.student.description()
    if was["timm_name"] != now["timm_name"]:
        return [f"model.student was {was['timm_name']} and is {now['timm_name']}"]
    before, after = was["timm_kwargs"], now["timm_kwargs"]
    return [
        f"model.student's {key} was {before.get(key, 'not given')} and is {after.get(key, 'not given')}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ] or ["model.student has other weights"]
