"""What losses fitted to a teacher before its answers were stored: a run takes it from the cache."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from distill_dynamics.errors import UserError, first_line
from distill_dynamics.models.save import read_weights, write_weights

NAME = "fitted.safetensors"


def fitted_state(loss: Any) -> dict[str, Tensor]:
    """The buffers of a loss, and of its parameters those that `fit` changed: the others are the run's own."""
    parameters = dict(loss.named_parameters())
    state = {name: value for name, value in loss.state_dict().items() if name not in parameters}
    fitted = sorted(getattr(loss, "fitted_parameters", ()))
    return state | {name: parameters[name].detach() for name in fitted}


def write_fitted(
    folder: Path, terms: Mapping[str, Any], images: Mapping[str, Any], shapes: Mapping[str, Any]
) -> None:
    """Write what every loss that has `fit` was fitted, if there is one; `images` says to which.

    `shapes` are those of what the losses see of the teacher, which `fields.check_shapes` compares.
    """
    states = {
        f"{place}.{name}": value
        for place, loss in _losses(terms)
        for name, value in fitted_state(loss).items()
    }
    if states:
        facts = {"fitted to": dict(images), "seen": dict(shapes), **_facts(terms)}
        write_weights(folder / NAME, states, facts, None)


def load_fitted(folder: Path, terms: Mapping[str, Any], images: Mapping[str, Any]) -> None:
    """Fill in what every loss that has `fit` was fitted.

    UserError where the cache has none, or was fitted with other settings or to other images.
    """
    losses = dict(_losses(terms))
    if not losses:
        return
    try:
        saved, facts = read_weights(folder / NAME)
    except Exception as error:  # missing or damaged
        raise UserError(f"{folder / NAME}: {first_line(error)}; build the cache anew") from error
    if "fitted to" not in facts:
        raise UserError(
            f"{folder / NAME} is of an earlier version, whose losses were fitted to augmented "
            "images; build the cache anew"
        )
    expected = {"fitted to": dict(images), **_facts(terms)}
    # A cache may be older than an argument of its loss, which then had the default.
    defaults = {
        (f"model.terms.{place}", name): parameter.default
        for place, loss in losses.items()
        for name, parameter in inspect.signature(type(loss)).parameters.items()
        if parameter.default is not parameter.empty
    }
    for place, settings in expected.items():
        for name, value in settings.items():
            if (was := facts.get(place, {}).get(name, defaults.get((place, name), "not there"))) != value:
                raise UserError(
                    f"{folder / NAME}: {place}: {name} was {was} and is {value}; go on with "
                    "what the cache was built with, or build one with this config"
                )
    for place, loss in losses.items():
        loss.fitted_parameters = {n for n, _ in loss.named_parameters() if f"{place}.{n}" in saved}
        for name, value in fitted_state(loss).items():
            key = f"{place}.{name}"
            if key not in saved or saved[key].shape != value.shape:
                raise UserError(
                    f"{folder / NAME} has no {key} of {list(value.shape)}, which the loss "
                    "here fits to its teacher; build one with this config"
                )
            value.copy_(saved[key])


def _facts(terms: Mapping[str, Any]) -> dict[str, Any]:
    """Of each its class and the settings that it was made with, which what it fits may depend on."""
    return {
        f"model.terms.{name}.{pair}": {"loss": type(loss).__qualname__, **term.loss_settings[pair]}
        for name, term in terms.items()
        for pair, loss in enumerate(term)
        if hasattr(loss, "fit")
    }


def _losses(terms: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, term in terms.items():
        for pair, loss in enumerate(term):
            if hasattr(loss, "fit"):
                yield f"{name}.{pair}", loss
