"""What is looked at before the first step, so that a mistake costs a line: settings, shapes, resuming."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from distill_dynamics.errors import UserError, first_line
from distill_dynamics.models.isolated import isolated

if TYPE_CHECKING:
    from distill_dynamics.models.backbone import Backbone
    from distill_dynamics.train.distiller import Distiller


def check_number(key: str, value: Any, least: float = 0, most: float = math.inf, above: bool = False) -> None:
    """UserError unless `value` is a finite number from `least` (or, with `above`, more) to `most`."""
    if not math.isfinite(value) or not least <= value <= most or (above and value == least):
        wanted = f"more than {least:g}" if above else f"at least {least:g}"
        wanted = f"between {least:g} and {most:g}" if most < math.inf else f"{wanted} and finite"
        raise UserError(f"model.{key} must be {wanted}, not {value}")


def check_name_of_term(name: str) -> None:
    """UserError for a term's name that cannot be a module's, or a metric's."""
    taken = name in ("ce", "kd") or hasattr(nn.ModuleDict, name)
    if taken or not name.strip() or any(c in "./" or not c.isprintable() for c in name):
        why = "is taken" if taken else "is no name of a metric"
        raise UserError(f"model.terms: the name {name!r} {why}, choose another, of letters, digits and _")


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


# --- one dry image ------------------------------------------------------------------------------------


def dry_run(distiller: Distiller, data: Any, stage: str) -> None:
    """Send an image through both models and every term, as training will; nothing is changed by it.

    It is a batch of one where batches are of one image, else of two: batch norm asks for no more. For other
    stages than "fit" only the student is asked, in eval mode.

    Raises:
        UserError: one of them cannot take what it is given, or gives what cannot be taken.
    """
    images = _ramp(2 if stage == "fit" and data.batch_size > 1 else 1, len(data.mean), data.image_size)
    size = f"{data.image_size} x {data.image_size} images"
    with _unchanged(distiller):
        student = _asked("student", distiller.student, distiller.student_layers, images, size, stage == "fit")
        if student.logits.shape != (len(images), distiller.student.num_classes):
            raise UserError(
                f"model.student: {distiller.student.name} answers {len(images)} images with "
                f"{_shape(student.logits)}, not with one number a class ({distiller.student.num_classes})"
            )
        if distiller.teacher is None or stage != "fit":
            return
        teacher = _asked("teacher", distiller.teacher, distiller.teacher_layers, images, size, False)
        of_student = dict(zip(distiller.student_layers, student.maps, strict=True))
        of_teacher = dict(zip(distiller.teacher_layers, teacher.maps, strict=True))
        for name, pairs in distiller.pairs.items():
            losses: Any = distiller.terms[name]
            for loss, (s, t) in zip(losses, pairs, strict=True):
                _term(name, loss, (s, of_student[s]), (t, of_teacher[t]))


def _ramp(n: int, channels: int, size: int) -> Tensor:
    return torch.linspace(-1, 1, n * channels * size * size).view(n, channels, size, size)


def _asked(role: str, backbone: Backbone, layers: list[int], images: Tensor, size: str, train: bool) -> Any:
    device = next(backbone.parameters()).device
    with isolated(backbone), torch.enable_grad() if train else torch.no_grad():
        backbone.train(train)
        try:
            return backbone(images.to(device), layers)
        except Exception as error:  # whatever a model stumbles over
            if "more than 1 value per channel" in str(error):
                raise UserError(
                    f"model.{role}: {backbone.name} has batch norm, which cannot be trained with "
                    f"{len(images)} of these {size} a batch: set a larger "
                    "data.init_args.batch_size, or larger images"
                ) from error
            raise UserError(
                f"model.{role}: {backbone.name} cannot take {size}: {_said(error)}. Set data.image_size, or "
                "another model"
            ) from error


def _term(name: str, loss: nn.Module, student: tuple[int, Tensor], teacher: tuple[int, Tensor]) -> None:
    (s, student_map), (t, teacher_map) = student, teacher
    place = (
        f"model.terms.{name}: {type(loss).__name__}, between the student's block {s} ({_shape(student_map)}) "
        f"and the teacher's block {t} ({_shape(teacher_map)})"
    )
    weight = next(loss.parameters(), student_map)
    with suppress(Exception):  # one that cannot be copied
        loss = deepcopy(loss)  # it may count its calls, or remember what it saw
    loss.train()
    try:
        value = loss(student_map.to(weight.device), teacher_map.to(weight.device))
    except Exception as error:  # a user's own
        raise UserError(f"{place}: {_said(error)}") from error
    if not isinstance(value, Tensor) or value.numel() != 1:
        given = _shape(value) if isinstance(value, Tensor) else type(value).__name__
        raise UserError(f"{place}: gives {given}, not one number")


def _said(error: Exception) -> str:
    text = first_line(error)[:200]
    return text if text == type(error).__name__ else f"{type(error).__name__}: {text}"


def _shape(values: Tensor) -> str:
    return "x".join(str(n) for n in values.shape)


@contextmanager
def _unchanged(module: nn.Module) -> Iterator[None]:
    """Buffers (batch norm's averages, a term's memory) and random states are afterwards what they were."""
    before = [(buffer, buffer.clone()) for buffer in module.buffers()]
    with isolated(module):
        try:
            with _alone():
                yield
        finally:
            for buffer, value in before:
                buffer.copy_(value)


@contextmanager
def _alone() -> Iterator[None]:
    """As if there were no other ranks: none then waits for another that has failed."""
    before = torch.distributed.is_initialized
    torch.distributed.is_initialized = lambda: False
    try:
        yield
    finally:
        torch.distributed.is_initialized = before


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
