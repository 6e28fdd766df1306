"""`cache-teacher --verify`: read a cache against its checksums, and compute some of its answers again.

Letters: B batch, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from distill_dynamics.data.keyed import View
from distill_dynamics.errors import UserError
from distill_dynamics.losses.logits import softened
from distill_dynamics.teacher_cache.build import read_cache
from distill_dynamics.teacher_cache.views import Views

RECOMPUTED = 256
"""Views that are computed again to verify a cache."""

TOLERANCE = 0.02
"""How far an answer computed again may be from the stored one, in parts of the root mean square of its field
in a batch plus its own size: half precision rounds by 0.0005 of the latter, the rest is for devices that do
not always add in one order."""

SMALLEST = 1e-30
"""Where the logarithm of a probability ends, as far as it is compared."""


def verify(views: Views) -> None:
    """Compare, each rank its share. Raises UserError for what is missing, damaged or different."""
    cache, trainer = read_cache(views), views.trainer
    cache.check_finished()
    layout, rank, world = cache.layout, trainer.global_rank, trainer.world_size
    for block in views.bar(layout.blocks()[rank::world], "Checksums", " blocks"):
        cache.files.check(block)
    rng, count = np.random.default_rng(), -(-RECOMPUTED // world)
    rows = np.sort(rng.integers(layout.images, size=count))
    image_of_row = np.argsort(cache.files.row_of_image())
    drawn = [View(int(rng.integers(layout.views)), int(image_of_row[row])) for row in rows]
    # Of a cache that holds more, those of this config's terms.
    fields = views.fields_in(layout)
    read = cache.answers([*cache.logit_fields(), *fields])
    largest = 0.0
    for images, shown, _ in views.shown(drawn, "Again"):
        logits, live = views.answers(images, fields, bool(cache.logit_fields()) and views.reads_logits)
        cached = read(shown)
        pairs = {name: (live[name].float().cpu(), cache.target(cached, name)) for name in fields}
        if logits is not None:
            pairs["the logits"] = _log_probs(logits.cpu(), cached, cache.temperature)
        for name, (now, before) in pairs.items():
            largest = max(largest, _deviation(views, name, now, before, shown))
    gathered = trainer.strategy.all_gather(torch.tensor(largest, device=trainer.strategy.root_device))
    if views.is_first:
        untouched = [name for name in layout.fields if name not in [*cache.logit_fields(), *fields]]
        print(
            f"\n  {views.folder}: {len(layout.blocks())} blocks are what was written, and {count * world} "
            f"views computed again are within {gathered.max():.2g} of what is stored"
            + (f"; not computed, for want of their terms: {', '.join(untouched)}" if untouched else "")
            + "\n"
        )


def _deviation(views: Views, name: str, now: Tensor, before: Tensor, shown: Sequence[View]) -> float:
    """The largest deviation, as `TOLERANCE` counts it. UserError beyond that."""
    size = before.abs() + before.square().mean().sqrt()
    by_image = torch.where(now == before, 0, (now - before).abs() / size).flatten(1).amax(dim=1)
    by_image = by_image.nan_to_num(torch.inf, torch.inf)
    if not by_image.max() <= TOLERANCE:
        view = shown[int(by_image.argmax())]
        raise UserError(
            f"{views.folder}: {name} of image {view.image}, view {view.view} is not what the teacher "
            f"answers now (off by {by_image.max():.3g} of its size); build the cache anew"
        )
    return float(by_image.max())


def _log_probs(logits: Tensor, cached: dict[str, Tensor], temperature: float) -> tuple[Tensor, Tensor]:
    """Of logits [B, K] and what is stored: log probabilities of the stored classes, then of all others."""
    now, before = softened(logits, temperature), cached["log_probs"].float()
    if "classes" not in cached:
        return now, before
    classes = cached["classes"].long()
    if int(classes.max()) >= now.shape[1]:
        return torch.full_like(before, torch.nan), before
    # A class that is there twice counts twice in what is stored, and once here.
    others = now.exp().scatter(1, classes, 0.0).sum(dim=1, keepdim=True)
    twice = (classes.sort(dim=1).values.diff(dim=1) == 0).any(dim=1, keepdim=True)
    others = torch.where(twice, torch.nan, others)
    rest = cached["rest"].float()[:, None]
    before = torch.cat([before, rest.clamp(min=SMALLEST).log()], dim=1)
    return torch.cat([now.gather(1, classes), others.clamp(min=SMALLEST).log()], dim=1), before
