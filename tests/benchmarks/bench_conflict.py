"""What a probe of GradientConflict costs beside a training step of as many images."""

from collections.abc import Iterator

import torch
from peers import LR
from sizes import SIZES, Size
from table import Row, row
from turns import by_turns

from distill_dynamics import Backbone, Distiller, Term
from distill_dynamics.callbacks.conflict import block_parameters, conflict
from distill_dynamics.losses import ProjectorKD, SoftKD, SpectralKD

TERMS = {"one term": (SpectralKD,), "two terms": (SpectralKD, ProjectorKD)}
"""On the last block, each."""


def rows(small: bool) -> Iterator[Row]:
    """Both include the teacher's forward pass."""
    for name, size in SIZES.items():
        if small and name != "Fashion-MNIST size":
            continue
        for what, losses in TERMS.items():
            probed, trained = by_turns(_probe_and_step(size, losses), 2 if small else 7)
            yield row(f"{name}: probe of GradientConflict, {what} ÷ step", probed, trained)


def _probe_and_step(size: Size, losses: tuple[type, ...]) -> tuple:
    torch.manual_seed(0)
    student = Backbone(size.student, timm_kwargs=size.student_kwargs)
    teacher = Backbone(size.teacher, timm_kwargs=size.teacher_kwargs)
    distiller = Distiller(student, teacher, {loss.__name__: Term(loss, last=1) for loss in losses})
    optimizer = torch.optim.AdamW((p for p in distiller.parameters() if p.requires_grad), lr=LR, fused=True)
    blocks = block_parameters(student)
    ((images, targets),) = size.batches(1)
    names, weights = [loss.__name__ for loss in losses], distiller.weights_at(0.0)

    def parts() -> dict[str, torch.Tensor]:
        with torch.no_grad():
            taught = teacher(images, [-1])
        learnt = student(images, [-1])
        found = {
            "ce": torch.nn.functional.cross_entropy(learnt.logits, targets),
            "kd": SoftKD()(learnt.logits, taught.logits),
        }
        for name in names:
            found[name] = distiller.terms[name][0](learnt.maps[0], taught.maps[0])
        return found

    def weighted(found: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.stack([weights[name] * value for name, value in found.items()]).sum()

    def probe() -> None:
        found = parts()
        terms = {name: found.pop(name) for name in names}
        conflict(terms, weights, weighted(found), blocks)

    def step() -> None:
        optimizer.zero_grad()
        weighted(parts()).backward()
        optimizer.step()

    return probe, step
