"""What the step of each method in configs/methods costs beside SoftKD's, both forward passes included."""

from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import yaml
from peers import LR
from sizes import SIZES, Size
from table import Row, row
from turns import by_turns

from distill_dynamics import Backbone, Distiller, Term

CONFIGS = Path(__file__).parents[2] / "configs" / "methods"
METHODS = sorted(path for path in CONFIGS.glob("*.yaml") if path.stem not in ("soft_kd", "class_token"))
"""But the one whose teacher is no CaiT."""


def rows(small: bool) -> Iterator[Row]:
    """A method at a time, in turns with SoftKD."""
    for name, size in SIZES.items():
        paper = name != "Fashion-MNIST size"
        if small and paper:
            continue
        for path in METHODS[:2] if small else METHODS:
            steps = [step(size, method) for method in (path, path.with_stem("soft_kd"))]
            of_method, of_soft_kd = by_turns(steps, 2 if small else 3 if paper else 15)
            yield row(f"{name}: {path.stem} ÷ SoftKD", of_method, of_soft_kd)


def step(size: Size, path: Path) -> Callable[[], None]:
    """A whole training step by a method's config."""
    model = yaml.safe_load(path.read_text())["model"]
    torch.manual_seed(0)
    student = student_of(size, model.get("student", {}))
    teacher = Backbone(size.teacher, timm_kwargs=size.teacher_kwargs)
    terms = {name: made(term) for name, term in model["terms"].items()}
    distiller = Distiller(student, teacher, terms, alpha=model["alpha"]).train()
    optimizer = torch.optim.AdamW((p for p in distiller.parameters() if p.requires_grad), lr=LR, fused=True)
    ((images, targets),) = size.batches(1)
    batch = {"targets": targets, "progress": 0.5}

    def run() -> None:
        losses, weights = distiller.losses(images, batch), distiller.weights_at(0.5)
        total = torch.stack([weights[name] * value.gated for name, value in losses.items()]).sum()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()

    return run


def student_of(size: Size, config: dict[str, Any]) -> Backbone:
    """The size's student, as far as a method's config does not say another."""
    given = config.get("init_args", config)
    make = maker(config) if "class_path" in config else Backbone
    name, timm_kwargs = given.get("name", size.student), given.get("timm_kwargs", size.student_kwargs)
    return make(name=name, timm_kwargs=timm_kwargs)


def made(term: dict[str, Any]) -> Term:
    """A term as the command line makes it of YAML, without what is of a whole training."""
    term.pop("budget", None)
    makers = {key: maker(value) for key, value in term.items() if isinstance(value, dict)}
    loss = makers.pop("loss")
    return Term(**term | {"loss": loss} | {key: make() for key, make in makers.items()})


def maker(value: dict[str, Any]) -> partial:
    """Makes what a class_path names."""
    module, _, name = value["class_path"].rpartition(".")
    return partial(getattr(import_module(module), name), **value.get("init_args", {}))
