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

VERIFIED = 256
"""Views that are computed again to verify a cache."""

CLOSE = 0.02
"""How far an answer computed again may be from the stored one, in parts of the root mean square of its field
in a batch plus its own size: half precision rounds by 0.0005 of the latter, the rest is for devices that do
not always add in one order."""

LEAST = 1e-30
"""Where the logarithm of a probability ends, as far as it is compared."""


def verify(views: Views) -> None:
    """Compare, each rank its share. Raises UserError for what is missing, damaged or different."""
    stored, trainer = read_cache(views), views.trainer
    stored.check_whole()
    layout, rank, world = stored.layout, trainer.global_rank, trainer.world_size
    for block in views.bar(layout.blocks()[rank::world], "Checksums", " blocks"):
        stored.files.check(block)
    rng, count = np.random.default_rng(), -(-VERIFIED // world)
    rows = np.sort(rng.integers(layout.images, size=count))
    images_of = np.argsort(stored.files.row_of_image())
    drawn = [View(int(rng.integers(layout.views)), int(images_of[row])) for row in rows]
    # Of a cache that holds more, those of this config's terms.
    fields = views.fields_in(layout)
    logits = stored.logit_fields() if views.reads_logits else []
    read = stored.answers([*stored.logit_fields(), *fields])
    worst = 0.0
    for images, shown, _ in views.shown(drawn, "Again"):
        answer, maps = views.answers(images, fields, bool(logits))
        cached = read(shown)
        if answer is not None:
            now, then = _logits_of(answer.cpu(), cached, stored.temperature)
            worst = max(worst, _off(views, "the logits", now, then, shown))
        for name, values in maps.items():
            worst = max(worst, _off(views, name, values.float().cpu(), stored.target(cached, name), shown))
    gathered = trainer.strategy.all_gather(torch.tensor(worst, device=trainer.strategy.root_device))
    if views.is_first:
        untouched = [name for name in layout.fields if name not in [*stored.logit_fields(), *fields]]
        print(
            f"\n  {views.folder}: {len(layout.blocks())} blocks are what was written, and {count * world} "
            f"views computed again are within {gathered.max():.2g} of what is stored"
            + (f"; not computed, for want of their terms: {', '.join(untouched)}" if untouched else "")
            + "\n"
        )


def _off(views: Views, name: str, now: Tensor, then: Tensor, shown: Sequence[View]) -> float:
    """The largest deviation, as `CLOSE` counts it. UserError beyond that."""
    size = then.abs() + then.square().mean().sqrt()
    off = torch.where(now == then, 0, (now - then).abs() / size).flatten(1).amax(dim=1)
    off = off.nan_to_num(torch.inf, torch.inf)
    if not off.max() <= CLOSE:
        view = shown[int(off.argmax())]
        raise UserError(
            f"{views.folder}: {name} of image {view.image}, view {view.view} is not what the teacher "
            f"answers now (off by {off.max():.3g} of its size); build the cache anew"
        )
    return float(off.max())


def _logits_of(logits: Tensor, cached: dict[str, Tensor], temperature: float) -> tuple[Tensor, Tensor]:
    """Of logits [B, K] and what is stored: the logarithms of the stored classes, then of the rest, both."""
    now = softened(logits, temperature)
    then = cached["log_probs"].float()
    if "classes" not in cached:
        return now, then
    classes = cached["classes"].long()
    if int(classes.max()) >= now.shape[1]:
        return torch.full_like(then, torch.nan), then
    # A class that is there twice counts twice in what is stored, and once here.
    others = now.exp().scatter(1, classes, 0.0).sum(dim=1, keepdim=True)
    twice = (classes.sort(dim=1).values.diff(dim=1) == 0).any(dim=1, keepdim=True)
    others = torch.where(twice, torch.nan, others)
    rest = cached["rest"].float()[:, None]
    now, then = now.gather(1, classes), torch.cat([then, rest.clamp(min=LEAST).log()], dim=1)
    return torch.cat([now, others.clamp(min=LEAST).log()], dim=1), then
