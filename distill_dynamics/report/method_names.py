"""What a configuration's method is called: its losses, where they look, how much they weigh."""

from __future__ import annotations

import json
from typing import Any

from distill_dynamics.report.loss_defaults import loss_defaults


def described(config: dict[str, Any]) -> tuple[str, str, str]:
    """Name, layers and weights of a configuration's method.

    Raises `AttributeError`, `KeyError`, `TypeError` or `ValueError` for what `fit` would not have taken.
    """
    model = config.get("model")
    if not isinstance(model, dict):
        return "unknown method", "", ""
    given = model.get("terms") or {}
    terms = {name: term for name, term in given.items() if term is not None}
    alpha = model.get("alpha")  # fit writes it as given: None is its default, 0.9 with a teacher
    taught = bool(model.get("teacher") or terms) if alpha is None else alpha > 0
    lacking = "" if taught and "kd" not in given else " without SoftKD"
    lacking += " without cross-entropy" if "ce" in given else ""
    if not terms:
        return "no distillation" if "SoftKD" in lacking else f"SoftKD{lacking}", "", ""
    classes = [_loss(term)["class_path"].rsplit(".", 1)[-1] for term in terms.values()]
    names = [
        f"{kind}{f' ({name})' if classes.count(kind) > 1 else ''}{_options(_loss(term))}"
        for (name, term), kind in zip(terms.items(), classes, strict=True)
    ]
    return (
        " + ".join(names) + lacking,
        "; ".join(_blocks(term) for term in terms.values()),
        "; ".join(_weight(term.get("weight", 0.2)) for term in terms.values()),
    )


def _weight(weight: Any) -> str:
    """A number, or a schedule: "Until [start: 0.2, end: 0.5]"."""
    if not isinstance(weight, dict):
        return f"{weight:g}"
    return weight["class_path"].rsplit(".", 1)[-1] + _listed(weight.get("init_args") or {})


def _loss(term: dict[str, Any]) -> dict[str, Any]:
    loss = term.get("loss")
    return loss if isinstance(loss, dict) and "class_path" in loss else {"class_path": loss}


def _options(loss: dict[str, Any]) -> str:
    """Arguments of a loss that are not its defaults: a method by the same name that is not the same."""
    defaults = loss_defaults(loss["class_path"])
    given = {
        name: value
        for name, value in (loss.get("init_args") or {}).items()
        if name not in defaults or defaults[name] != value
    }
    return _listed(given)


def _listed(given: dict[str, Any]) -> str:
    shown = ", ".join(f"{name}: {json.dumps(value, default=str)}" for name, value in given.items())
    return f" [{shown}]" if given else ""


def _blocks(term: dict[str, Any]) -> str:
    first, last, pairs = term.get("first"), term.get("last"), term.get("pairs")
    shown = [f"F {first}"] if first else []
    shown += [f"L {last}"] if last else []
    if pairs == "all":
        shown.append("all")
    elif pairs:
        shown.append("pairs " + " ".join(f"{student}-{teacher}" for student, teacher in pairs))
    return ", ".join(shown)
