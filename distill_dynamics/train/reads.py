"""What a loss reads, told by the names of `forward`'s parameters, and the widths of it."""

from __future__ import annotations

import difflib
import inspect
from functools import partial
from typing import Any

from distill_dynamics.errors import UserError
from distill_dynamics.models.backbone import Backbone
from distill_dynamics.models.features import BY_BLOCK, BY_IMAGE, width

OF_MODELS = {f"{who}_{word}": (who, word) for who in ("student", "teacher") for word in BY_BLOCK + BY_IMAGE}
OF_BATCH = ("targets", "index", "progress")
WIDTHS = ("student_channels", "teacher_channels")


def words_of(term: str, loss: type) -> dict[str, tuple[str, str]]:
    """By parameter of `forward`: whose, "student", "teacher" or "batch", and what. UserError for others."""
    found: dict[str, tuple[str, str]] = {}
    static = isinstance(inspect.getattr_static(loss, "forward"), staticmethod)
    parameters: Any = inspect.signature(loss.forward).parameters  # type: ignore[attr-defined]
    for name in [*parameters][0 if static else 1 :]:
        if name in OF_MODELS:
            found[name] = OF_MODELS[name]
        elif name in OF_BATCH:
            found[name] = ("batch", name)
        else:
            known = [*OF_MODELS, *OF_BATCH]
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise UserError(
                f"model.terms.{term}: {loss.__name__}.forward reads {name!r}; a loss can read student_ and "
                f"teacher_ {', '.join(BY_BLOCK + BY_IMAGE)}, and {', '.join(OF_BATCH)}, each by "
                f"its name.{hint}"
            )
    if not found:
        raise UserError(f"model.terms.{term}: {loss.__name__}.forward reads nothing")
    return found


def takes_widths(make: Any) -> bool:
    """Whether the class that this makes objects of begins with the widths of what its objects read."""
    made_of = class_of(make)
    return made_of is not None and tuple(inspect.signature(made_of).parameters)[:2] == WIDTHS


def class_of(make: Any) -> type | None:
    """The class that this makes objects of; None for a function."""
    if isinstance(make, partial):  # a config's has the class among its arguments
        return next((part for part in (make.func, *make.args) if inspect.isclass(part)), None)
    return make if inspect.isclass(make) else None


def block_of(who: str, word: str, pair: tuple[int, int] | None) -> int | None:
    """The block, from 1, that a word of one of the models means at a pair; None where it means none."""
    return pair[who == "teacher"] if pair is not None and word in BY_BLOCK else None


def width_of(who: str, word: str, pair: tuple[int, int] | None, model: Backbone | None) -> int | None:
    """C, D or K of that; None without the model."""
    return None if model is None else width(model, word, block_of(who, word, pair))
