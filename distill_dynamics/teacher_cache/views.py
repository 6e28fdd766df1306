"""A teacher shown views: batches of fixed views on a device, and its answers as a cache has them.

Letters: B batch, C channels, H W grid, K classes.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from distill_dynamics.data.keyed import View
from distill_dynamics.losses.maps import at_least_float32
from distill_dynamics.models.features import Wanted
from distill_dynamics.models.teacher import Teacher
from distill_dynamics.teacher_cache.fields import LOGITS, Key, Part, Reader, part_of
from distill_dynamics.teacher_cache.layout import Block, Layout

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

PLANNED_BY = 64
"""Images that a build is planned by, at most: a plan should cost little beside what it plans."""


class Sample(NamedTuple):
    """A batch that a build is planned by."""

    images: Tensor
    loading: float
    """Seconds an image, for one process."""


@dataclass
class Views:
    """The teacher of a run beside its data: what a cache is built and verified with.

    The views do not go through Lightning's loop, which would share them out anew, keep the key of each, and
    wait for ranks that have none.
    """

    teacher: Teacher
    readers: Sequence[Reader]
    parts: Mapping[Key, Part]
    """Of all readers but those of logits."""
    data: Any
    """The DataModule, set up for fitting."""
    trainer: Trainer
    made_by: dict[str, Any]
    fitted_to: dict[str, Any]
    """What the images that losses were fitted to depend on."""
    folder: Path
    """Of the cache."""
    shows_progress: bool

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that decides and tells."""
        return self.trainer.is_global_zero

    @property
    def reads_logits(self) -> bool:
        """Whether a term reads the teacher's logits."""
        return any(reader.wanted.word in LOGITS for reader in self.readers)

    def fields_in(self, layout: Layout) -> list[str]:
        """Fields of a cache that this run's losses see, but for logits."""
        names = dict.fromkeys(part.name for part in self.parts.values())
        return [name for name in names if name in layout.fields]

    def bar(self, total: Any, title: str, unit: str) -> tqdm:
        """A progress bar of the first rank."""
        hidden = not (self.is_first and self.shows_progress)
        return tqdm(total, desc=title, unit=unit, disable=hidden)

    def on_device(self, images: Tensor) -> Tensor:
        """A batch, in the trainer's precision on this rank's device."""
        return self.trainer.precision_plugin.convert_input(images).to(self.trainer.strategy.root_device)

    def shown(self, views: Sequence[View], title: str) -> Iterator[tuple[Tensor, list[View], list[View]]]:
        """Batches of views: images [B, C, H, W], the views that they are, and those that were asked for.

        These are more where images cannot be read and are to be left out.
        """
        if not views:
            return
        size = self.data.eval_batch_size
        with self.bar(None, title, " views") as bar:
            bar.reset(len(views))
            for first, (images, _, place) in zip(
                range(0, len(views), size), self.data.views_dataloader(views), strict=True
            ):
                asked = [views[i] for i in range(first, min(first + size, len(views)))]
                pairs = zip(place["view"].tolist(), place["image"].tolist(), strict=True)
                yield self.on_device(images), [View(*p) for p in pairs], asked
                bar.update(len(asked))

    def answers(
        self, images: Tensor, fields: Collection[str], logits: bool
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Logits [B, K], None unless asked for; and by field what the losses see of the teacher."""
        of_field = {part.name: reader for reader in self.readers if (part := self.parts.get(reader.key))}
        wanted = [of_field[name].wanted for name in fields]
        if logits:
            wanted.append(Wanted("", 0, "logits", None))
        outputs = self.teacher(images, wanted)
        seen = {}
        with torch.no_grad():
            for name in fields:
                seen[name] = at_least_float32(part_of(of_field[name], outputs[of_field[name].key]))
        return outputs.get(("", 0, "logits")), seen

    def sample(self) -> Sample:
        """Views spread over the images."""
        count, size = len(self.data.sources["train"].targets), min(self.data.eval_batch_size, PLANNED_BY)
        order = [View(0, int(image)) for image in np.linspace(0, count - 1, min(count, size))]
        loader = self.data.views_dataloader(order)
        began = time.perf_counter()
        # In this process: starting others for one batch would take longer than the batch.
        batch = loader.dataset.__getitems__(list(loader.sampler))
        seconds = time.perf_counter() - began
        loader.dataset.unreadable.check(batch)
        return Sample(self.on_device(loader.dataset.normalised(batch)), seconds / len(order))


class ViewsOf(Sequence[View]):
    """All views of some blocks, in their order."""

    def __init__(self, blocks: Sequence[Block], images_of: NDArray[np.int64]) -> None:
        self.blocks, self.images_of = blocks, images_of
        self.ends = np.cumsum([block.last - block.first for block in blocks], dtype=np.int64)

    def __len__(self) -> int:
        return int(self.ends[-1]) if self.blocks else 0

    def __getitem__(self, place: Any) -> Any:
        if not 0 <= place < len(self):
            raise IndexError(place)
        number = int(np.searchsorted(self.ends, place, side="right"))
        block = self.blocks[number]
        return View(block.view, int(self.images_of[block.last - int(self.ends[number] - place)]))
