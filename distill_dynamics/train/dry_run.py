"""One image through both models and every term, before anything is written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from distill_dynamics.errors import UserError, first_line
from distill_dynamics.models.backbone import Backbone
from distill_dynamics.models.features import LOGITS, POOLED, Read, read
from distill_dynamics.models.input_size import teacher_side
from distill_dynamics.models.isolated import isolated

if TYPE_CHECKING:
    from distill_dynamics.train.distiller import Distiller


def dry_run(distiller: Distiller, data: Any, stage: str, strategy: Any = None) -> None:
    """Send an image through both models and every term, as training will; nothing is changed by it.

    It is a batch of one where batches are of one image, else of two: batch norm asks for no more. For other
    stages than "fit" only the student is asked for its logits, in eval mode. `strategy` is Lightning's.

    Raises:
        UserError: one of them cannot take what it is given, or gives what cannot be taken.
    """
    count, student = 2 if stage == "fit" and data.batch_size > 1 else 1, distiller.student
    # A model without classes answers with what a classifier would read.
    answer = LOGITS if student.num_classes else POOLED
    reads = distiller.student_reads if stage == "fit" else {answer}
    with _restored(distiller):
        learnt = _run_model(
            "model.student", student, {*reads, answer}, count, data.image_size, stage == "fit"
        )
        if student.num_classes and learnt[answer].shape != (count, student.num_classes):
            raise UserError(
                f"model.student: {student.name} answers {count} images with {_shape(learnt[answer])}, not "
                f"with one number a class ({student.num_classes})"
            )
        if stage != "fit":
            return
        of_teacher: dict[str | None, dict[Read, Tensor]] = {}
        for name, teacher in distiller.teachers.items():
            if its := distiller.teacher_reads(name):
                side = teacher_side(teacher.backbone, data)
                of_teacher[name] = _run_model(teacher.key, teacher.backbone, its, count, side, False)
        with torch.set_grad_enabled(_needs_every_gradient(strategy)):
            values = [
                value
                for name, term in distiller.terms.items()
                for value in _term(name, term, learnt, of_teacher.get(term.teacher, {}), count)
            ]
            if torch.is_grad_enabled():
                _check_gradients(student, values)


def student_outputs(distiller: Distiller, data: Any) -> dict[Read, Tensor]:
    """What the terms read of the student, of two images that are none."""
    return _outputs(distiller.student, distiller.student_reads, data.image_size)


def teacher_outputs(distiller: Distiller, name: str, data: Any) -> dict[Read, Tensor]:
    """What the terms read of the teacher of a name, of two images that are none."""
    backbone = distiller.teachers[name].backbone
    return _outputs(backbone, distiller.teacher_reads(name), teacher_side(backbone, data))


def _outputs(backbone: Backbone, reads: set[Read], side: int) -> dict[Read, Tensor]:
    images = _ramp(2, backbone.input_size[0], side)
    with isolated(backbone):
        return read(backbone, images.to(next(backbone.parameters())), reads)


def _ramp(n: int, channels: int, size: int) -> Tensor:
    return torch.linspace(-1, 1, n * channels * size * size).view(n, channels, size, size)


def _run_model(
    key: str, backbone: Backbone, reads: set[Read], count: int, side: int, train: bool
) -> dict[Read, Tensor]:
    images, size = _ramp(count, backbone.input_size[0], side), f"{side} x {side} images"
    device = next(backbone.parameters()).device
    with isolated(backbone), torch.enable_grad() if train else torch.no_grad():
        backbone.train(train)
        try:
            found = read(backbone, images.to(device), reads)
        except UserError as error:  # it has not what a term reads
            raise UserError(f"{key}: {error}") from error
        except Exception as error:  # whatever a model stumbles over
            if "more than 1 value per channel" in str(error):
                raise UserError(
                    f"{key}: {backbone.name} has batch norm, which cannot be trained with "
                    f"{len(images)} of these {size} a batch: set a larger "
                    "data.init_args.batch_size, or larger images"
                ) from error
            raise UserError(
                f"{key}: {backbone.name} cannot take {size}: {_reason(error)}. Set data.image_size, "
                "or another model"
            ) from error
        if (POOLED in reads or backbone.frozen) and backbone.num_classes > 0:
            backbone.eval()
            both = read(backbone, images.to(device), {POOLED, LOGITS})
            if not torch.allclose(both[LOGITS], backbone(images.to(device)).logits, atol=1e-4):
                raise UserError(
                    f"{key}: the logits of {backbone.name} do not follow from its pooled features, "
                    + ("so freeze_backbone cannot be" if backbone.frozen else "which a term reads")
                )
    return found


def _needs_every_gradient(strategy: Any) -> bool:
    """Whether torch's DDP, as it is set up, waits for the gradient of every parameter."""
    options = getattr(strategy, "_ddp_kwargs", None)
    return options is not None and not (options.get("find_unused_parameters") or options.get("static_graph"))


def _check_gradients(student: Backbone, values: list[Tensor]) -> None:
    trained = {name: weight for name, weight in student.named_parameters() if weight.requires_grad}
    total = torch.stack([value.reshape(()).float() for value in values]).sum()
    if not total.requires_grad:
        raise UserError(f"model.terms: no term has a gradient for {student.name}, so nothing is trained")
    gradients = torch.autograd.grad(total, [*trained.values()], allow_unused=True)
    unused = [name for name, gradient in zip(trained, gradients, strict=True) if gradient is None]
    if unused:
        more = f" and {len(unused) - 1} more parameters get" if len(unused) > 1 else " gets"
        raise UserError(
            f"model.terms: {unused[0].removeprefix('model.')} of {student.name}{more} no gradient from any "
            "term, which ddp waits for: set trainer.strategy: ddp_find_unused_parameters_true"
        )


def _term(
    name: str, term: Any, student: dict[Read, Tensor], teacher: dict[Read, Tensor], images: int
) -> Iterator[Tensor]:
    term.grids = []
    for loss, inputs in zip(term, term.inputs, strict=True):
        given: dict[str, Any] = {"targets": torch.zeros(images, dtype=torch.long), "progress": 0.0}
        given["index"] = torch.arange(images)
        values, shown = {}, []
        for parameter, who, word, block in inputs:
            values[parameter] = (
                given[word] if who == "batch" else (student, teacher)[who == "teacher"][word, block]
            )
            if who != "batch":
                at = "" if block is None else f" of block {block}"
                shown.append(f"the {who}'s {word}{at} ({_shape(values[parameter])})")
        _check_attention(name, inputs, values)
        term.grids.append({who: tuple(values[p].shape[2:]) for p, who, word, _ in inputs if word == "map"})
        yield _loss(f"model.terms.{name}: {type(loss).__name__}, of {' and '.join(shown)}", loss, values)


def _check_attention(name: str, inputs: Any, values: dict[str, Any]) -> None:
    sizes = {who: values[p].shape[-1] for p, who, word, _ in inputs if word == "attention"}
    if len(set(sizes.values())) > 1:
        raise UserError(
            f"model.terms.{name}: the student's attention is between {sizes['student']} patches, the "
            f"teacher's between {sizes['teacher']}: their grids have to be equal"
        )


def _loss(place: str, loss: nn.Module, values: dict[str, Any]) -> Tensor:
    tensors = [value for value in values.values() if isinstance(value, Tensor)]
    weight = next(loss.parameters(), tensors[0] if tensors else torch.zeros(()))
    with suppress(Exception):  # one that cannot be copied
        loss = deepcopy(loss)  # it may count its calls, or remember what it saw
    loss.train()
    moved = {name: v.to(weight.device) if isinstance(v, Tensor) else v for name, v in values.items()}
    try:
        value = loss(**moved)
    except Exception as error:  # a user's own
        raise UserError(f"{place}: {_reason(error)}") from error
    if not isinstance(value, Tensor) or value.numel() != 1:
        given = _shape(value) if isinstance(value, Tensor) else type(value).__name__
        raise UserError(f"{place}: gives {given}, not one number")
    return value


def _reason(error: Exception) -> str:
    text = first_line(error)[:200]
    return text if text == type(error).__name__ else f"{type(error).__name__}: {text}"


def _shape(values: Tensor) -> str:
    return "x".join(str(n) for n in values.shape)


@contextmanager
def _restored(module: nn.Module) -> Iterator[None]:
    """Buffers (batch norm's averages, a term's memory) and random states are afterwards what they were."""
    before = [(buffer, buffer.clone()) for buffer in module.buffers()]
    with isolated(module):
        try:
            with _as_one_rank():
                yield
        finally:
            for buffer, value in before:
                buffer.copy_(value)


@contextmanager
def _as_one_rank() -> Iterator[None]:
    """As if there were no other ranks: none then waits for another that has failed."""
    before = torch.distributed.is_initialized
    torch.distributed.is_initialized = lambda: False
    try:
        yield
    finally:
        torch.distributed.is_initialized = before
