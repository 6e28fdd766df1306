"""timm.create_model, with its errors told in one line."""

from __future__ import annotations

import contextlib
import difflib
import inspect
import re
import textwrap
import traceback
from collections.abc import Collection, Iterator
from typing import Any

import huggingface_hub
import timm

from distill_dynamics.errors import UserError


def architecture(name: str) -> str:
    """timm's name without the tag of its pretrained weights."""
    return name.partition(".")[0]


def classes_of(name: str | None) -> int | None:
    """How many classes timm's model of this name has unless told otherwise; None for an unknown name."""
    known = timm.models.get_pretrained_cfg(name) if name and timm.is_model(name) else None
    return None if known is None else known.num_classes


def create(name: str, pretrained: bool, timm_kwargs: dict[str, Any]) -> Any:
    """The model. Raises UserError for an unknown name or keyword, and for weights that cannot be had."""
    for keyword in sorted({"pretrained", "checkpoint_path", "features_only"} & timm_kwargs.keys()):
        raise UserError(
            f"timm_kwargs: {keyword!r} does not belong there: weights come from pretrained or checkpoint, "
            "block outputs from the call"
        )
    if not re.search(r"[:/\\]", name) and not timm.is_model(name):
        raise UserError(f"timm has no model {name!r}{_nearest(architecture(name), timm.list_models())}")
    from_hub = name.startswith(("hf-hub:", "hf_hub:")) or (pretrained and ":" not in name)
    try:
        with _offline_if_hub_is_out_of_reach() if from_hub else contextlib.nullcontext():
            return timm.create_model(name, pretrained=pretrained, **timm_kwargs)
    except UserError:  # of an architecture of this package
        raise
    except Exception as error:
        reason = textwrap.shorten(str(error), 300).rstrip(".") or type(error).__name__
        unknown = re.search(r"(\w+)\.__init__\(\) got .*unexpected keyword argument[^']*'(\w+)'", reason)
        if unknown and unknown[2] in timm_kwargs:
            nearest = _nearest(unknown[2], _keywords(error, unknown[1]))
            raise UserError(f"timm_kwargs: {name} has no keyword {unknown[2]!r}{nearest}") from error
        if from_hub and isinstance(error, OSError):
            reason += "; without a network, give a checkpoint file, or pretrained: false"
        weights = " with pretrained weights" if pretrained else ""
        keywords = f" with timm_kwargs {timm_kwargs}" if timm_kwargs else ""
        raise UserError(f"timm cannot make {name}{weights}{keywords}: {reason}") from error


@contextlib.contextmanager
def _offline_if_hub_is_out_of_reach() -> Iterator[None]:
    """Let huggingface_hub look in its cache alone where it has no network.

    By itself it tries twelve times, for 47 seconds, before it says that a file cannot be had.
    """
    constants = huggingface_hub.constants
    offline = constants.HF_HUB_OFFLINE
    try:
        huggingface_hub.get_session().head(constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except Exception:
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = offline


def _keywords(error: Exception, refused_by: str) -> set[str]:
    """Keywords of the model class timm was building when it failed, and of the class that refused.

    The two differ where a model hands the keywords it does not know to a config class (ByobNet).
    """
    names: set[str] = set()
    for frame, _ in traceback.walk_tb(error.__traceback__):
        for builder in (frame.f_locals.get("model_cls"), frame.f_globals.get(refused_by)):
            if callable(builder):
                names |= inspect.signature(builder).parameters.keys()
    return names


def _nearest(word: str, candidates: Collection[str]) -> str:
    close = difflib.get_close_matches(word, candidates, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
