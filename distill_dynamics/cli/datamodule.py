"""The DataModule of a config of `fit`, made as `fit` makes it, and what it says of the models."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from distill_dynamics import data as data_room
from distill_dynamics import yaml_text
from distill_dynamics.cli.checks import import_all, refuse_functions
from distill_dynamics.cli.parser import OneLineParser
from distill_dynamics.cli.places import check_yaml
from distill_dynamics.data.module import ImageData
from distill_dynamics.errors import UserError
from distill_dynamics.models.create import classes_of


def datamodule_of(config: str, option: str) -> ImageData:
    """That of a file, which `option` names. UserError for a file that is no config of fit."""
    args = ["--config", os.path.expanduser(config)]  # where a mistake is looked up
    check_yaml(args)
    content = yaml_text.load(Path(args[1]).read_text())
    if "data" not in content:
        raise UserError(f"{option}: {config} holds no `data:`, so it is no config of fit")
    return _made(content["data"], args)


def has_validation_images(settings: Any) -> bool:
    """Whether a config's data have some to measure on. UserError where they cannot be listed."""
    return _made(settings, []).has_val


def _made(settings: Any, args: list[str]) -> ImageData:
    parser = OneLineParser()
    parser.args = args
    import_all(data_room)
    parser.add_subclass_arguments(ImageData, "data", required=True)
    parsed = parser.parse_object({"data": settings})
    refuse_functions(parsed)
    return parser.instantiate_classes(parsed).data


def set_num_classes(config: Any) -> None:
    """Write the number of the data's classes into the timm_kwargs of models for which none is given.

    Not where timm's model has so many by itself, nor for a teacher without a head, or whose weights bring
    their own number: published ones, a folder in timm's hub layout, a file that says what it is of. (A head
    made anew is another one with each seed, and a cache goes by the teacher's weights.) A teacher's file of
    another number is refused later.
    UserError where the data's folder cannot be listed.
    """
    named = [of.get("backbone") for of in (config.model.get("teachers") or {}).values()]
    given = [("student", config.model.get("student")), ("teacher", config.model.get("teacher"))]
    roles = [*given, *(("teacher", model) for model in named)]
    models = [of for role, model in roles if (of := _without_classes(role, model))]
    if not models:
        return
    data = _made(config.data, [])
    if not data.labels:
        _take_head_off(config.model.student)
        return
    if not (classes := len(data.find_classes())):
        return
    for model in models:
        if classes != classes_of(model.get("name")):
            model.timm_kwargs = {**(model.timm_kwargs or {}), "num_classes": classes}


def _take_head_off(config: Any) -> None:
    """Of the student; a teacher's is not asked for."""
    student = _without_classes("student", config)
    if student is not None and classes_of(student.get("name")) != 0:
        student.timm_kwargs = {**(student.timm_kwargs or {}), "num_classes": 0}


def _without_classes(role: str, model: Any) -> Any:
    """The settings of a model for which no number of classes is given, None where there is none to give."""
    model = model.get("init_args", model) if model else None
    if model is None or "timm_kwargs" not in model or "num_classes" in (model.timm_kwargs or {}):
        return None
    if role == "student":
        return model
    name = model.get("name")
    brings_its_own = model.get("pretrained") or Path(str(model.get("checkpoint"))).expanduser().is_dir()
    return None if name is None or brings_its_own or classes_of(name) == 0 else model
