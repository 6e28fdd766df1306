"""Default arguments of the package's losses, read from their source: to import them takes torch."""

import ast
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from distill_dynamics import losses


@cache
def loss_defaults(class_path: str) -> dict[str, Any]:
    """The arguments of a loss that have a default, with it; none for a class that is not the package's."""
    package, _, kind = class_path.rpartition(".")
    if package != losses.__name__:
        return {}
    for path in Path(losses.__path__[0]).glob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and node.name == kind:
                return _of_class(node, package)
    return {}


def _of_class(definition: ast.ClassDef, package: str) -> dict[str, Any]:
    for part in definition.body:
        if isinstance(part, ast.FunctionDef) and part.name == "__init__":
            return _literals(part.args)
    bases = [base.id for base in definition.bases if isinstance(base, ast.Name)]
    return loss_defaults(f"{package}.{bases[0]}") if bases else {}


def _literals(arguments: ast.arguments) -> dict[str, Any]:
    """The default of each argument, where it is written out."""
    placed = [*arguments.posonlyargs, *arguments.args]
    with_default = placed[len(placed) - len(arguments.defaults) :]
    pairs = [*zip(with_default, arguments.defaults, strict=True)]
    for name, value in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        pairs += [(name, value)] if value is not None else []
    found = {}
    for name, value in pairs:
        with suppress(ValueError):
            found[name.arg] = ast.literal_eval(value)
    return found
