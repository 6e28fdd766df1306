"""What one forward pass can give of a model, by name: the words that a loss may read.

Letters: B batch, C channels, H W grid, K classes, P prefix tokens, N = H W patches, D pooled width.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from distill_dynamics.models.parts import in_parts
from distill_dynamics.models.readable import check_class_token

if TYPE_CHECKING:
    from distill_dynamics.models.backbone import Backbone

BY_BLOCK = ("map", "prefix", "class_token", "attention")
BY_IMAGE = ("logits", "pooled", "dist_logits")

Read = tuple[str, int | None]
"""A word and a block, from 1: ("map", 12); without a block for what a model gives once: ("logits", None)."""

LOGITS: Read = ("logits", None)
POOLED: Read = ("pooled", None)


class _LogitsAndMaps(NamedTuple):
    logits: Tensor | None
    """[B, K], or None."""
    maps: list[Tensor]
    """[B, C, H, W] each, in the order asked for."""


class Features(_LogitsAndMaps):
    """What a forward pass gave of what was asked for. As a tuple it is `logits, maps`."""

    prefix: Sequence[Tensor] = ()
    """[B, P, C] each: class, distillation and register tokens."""
    attention: Sequence[Tensor] = ()
    """[B, heads, N, N] each, from patch to patch, every row with the sum 1."""
    pooled: Tensor | None = None
    """[B, D], what the classifier reads."""
    dist_logits: Tensor | None = None
    """[B, K] of the distillation token in training; the logits where there is none, and in evaluation."""


def read(backbone: Backbone, images: Tensor, reads: Collection[Read]) -> dict[Read, Tensor]:
    """Everything in `reads` from one forward pass of a batch normalised for this backbone.

    Without gradients a CPU does it `in_parts`. Of one that is frozen the head alone has gradients.
    """
    if backbone.frozen and torch.is_grad_enabled():
        with torch.no_grad():
            pooled = read(backbone, images, {POOLED})
        logits = backbone.model.get_classifier()(pooled[POOLED])
        return {one: pooled.get(one, logits) for one in reads}
    work = partial(_read, backbone, reads)
    found = [work(part) for part in in_parts(backbone, images, work, frozenset(reads))]
    if len(found) == 1:
        return found[0]
    # Taken out, so that memory holds one thing twice, and not all of them.
    return {one: torch.cat([part.pop(one) for part in found]) for one in [*found[0]]}


def _read(backbone: Backbone, reads: Collection[Read], images: Tensor) -> dict[Read, Tensor]:
    blocks = {word: sorted(block for w, block in reads if w == word and block) for word in BY_BLOCK}
    if blocks["class_token"]:
        check_class_token(backbone.model, backbone.name)
    of_prefix = sorted({*blocks["prefix"], *blocks["class_token"]})
    features = backbone(
        images,
        blocks["map"],
        logits=("logits", None) in reads,
        prefix=of_prefix,
        attention=blocks["attention"],
        pooled=("pooled", None) in reads,
        dist_logits=("dist_logits", None) in reads,
    )
    tokens = dict(zip(of_prefix, features.prefix, strict=True))
    lists = {
        "map": features.maps,
        "prefix": [tokens[block] for block in blocks["prefix"]],
        "class_token": [tokens[block][:, 0] for block in blocks["class_token"]],
        "attention": features.attention,
    }
    by_block: dict[Read, Tensor] = {
        (word, block): value
        for word in BY_BLOCK
        for block, value in zip(blocks[word], lists[word], strict=True)
    }
    return by_block | {(word, None): getattr(features, word) for word in BY_IMAGE if (word, None) in reads}


def width(backbone: Backbone, word: str, block: int | None) -> int:
    """How many numbers describe one position of what is read: C, D or K."""
    if block is not None:
        return backbone.channels[block - 1]
    if word == "pooled":
        return int(getattr(backbone.model, "head_hidden_size", backbone.model.num_features))
    return backbone.num_classes


class Wanted(NamedTuple):
    """One thing that a term's loss reads of the teacher."""

    term: str
    pair: int
    """Which of the term's losses, from 0."""
    word: str
    block: int | None
    teacher: str = ""
    """Which of several: its name."""


TeacherOutputs = dict[tuple[str, int, str], Any]
"""By term, pair and word: what a loss is given of the teacher, a tensor or `TopClasses`."""
