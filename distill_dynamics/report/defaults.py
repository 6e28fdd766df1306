"""What arguments of this package's classes are by default, so that a page names the others alone."""

from __future__ import annotations

import ast
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import distill_dynamics

_ROOT = Path(distill_dynamics.__file__).parent


@cache
def defaults_of(class_path: str) -> dict[str, Any]:
    """Parameter → plain default of a class that this package defines under this path; {} for any other.

    From the text of its file: to import a loss is to import torch, which a page does not need.
    """
    package, _, name = class_path.rpartition(".")
    root, *folders = package.split(".")
    # A config may be a stranger's: nothing in it is a path of this machine.
    if root != _ROOT.name or len(class_path) > 200 or not all(map(str.isidentifier, [*folders, name])):
        return {}
    place = _ROOT.joinpath(*folders)
    for file in [place.with_suffix(".py"), *sorted(place.glob("*.py"))]:
        text = file.read_text(encoding="utf-8") if file.is_file() else ""
        if f"class {name}(" in text or f"class {name}:" in text:
            return _defaults(text, name)
    return {}


def _defaults(text: str, name: str) -> dict[str, Any]:
    classes = {node.name: node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ClassDef)}
    made = classes[name]
    for function in made.body:
        if isinstance(function, ast.FunctionDef) and function.name == "__init__":
            found: dict[str, Any] = {}
            given = function.args
            names = [argument.arg for argument in given.args][-len(given.defaults) or None :]
            for parameter, default in zip(names, given.defaults, strict=False):
                with suppress(ValueError):
                    found[parameter] = ast.literal_eval(default)
            return found
    bases = [base.id for base in made.bases if isinstance(base, ast.Name) and base.id in classes]
    return _defaults(text, bases[0]) if bases else {}
