"""DataLoaders whose data sets make a whole batch, or a part of one, at once."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from distill_dynamics.data.ahead import made_ahead
from distill_dynamics.data.batches import IGNORED, Batch, joined
from distill_dynamics.data.keyed import EvalSampler, KeyedSampler
from distill_dynamics.errors import UserError
from distill_dynamics.signals import block_stop_signals, worker_ignore_signals

if TYPE_CHECKING:
    from distill_dynamics.data.images import Images

LEAST = 8
"""Images that a worker makes at once, if a batch has so many: a part costs the main process a message."""

_CPU = torch.device("cpu")


class ImageLoader(DataLoader[tuple[Tensor, Tensor]]):
    """A DataLoader over `Images`: yields (images, targets), and extras as a third part if there are some.

    Images are float32 [B,C,H,W], normalised and erased, on `device`. Workers draw the pixels, each a part of
    every batch, so that an epoch's first batch does not wait for one of them to make all of it. The rest is
    done on the device: on CUDA a batch ahead, beside the step that is under way. Pixels, order and errors are
    those of one process.

    Unreadable files are reported here, in the main process, so that the user sees one line and not a worker's
    traceback. Over a `KeyedSampler` it can be saved and continued in the middle of an epoch: what was seen is
    not drawn again.

    Args:
        dataset: `Images`.
        device: that batches are to be on.
        kept: over an `EvalSampler`, batches that were drawn already and are not drawn again; those that are
            drawn are added to it.
        settings: of DataLoader.
    """

    dataset: "Images"
    _position = (0, 0)  # the epoch that is under way, and how many of its batches were given out

    def __init__(
        self,
        dataset: "Images",
        *,
        device: torch.device = _CPU,
        kept: list[Batch] | None = None,
        **settings: Any,
    ):
        self.device, self.kept = device, kept  # Lightning makes the loader anew from its attributes
        ours: dict[str, Any] = {
            "collate_fn": as_drawn,
            "worker_init_fn": worker_ignore_signals,
            "pin_memory": device.type == "cuda",
            # Its own, or every epoch would draw the workers' seeds from the global generator.
            "generator": torch.Generator(),
        }
        if settings.get("num_workers"):
            # Where all is kept, workers have nothing to do later. 8 parts each are about 8 batches.
            ours |= {"persistent_workers": kept is None, "prefetch_factor": 8}
        super().__init__(dataset, **ours | settings)

    def __len__(self) -> int:
        return len(self.batch_sampler)  # type: ignore[arg-type]

    @property
    def _index_sampler(self) -> "_Parts":
        """torch's name for what a worker is given at once."""
        return _Parts(self.batch_sampler, self.num_workers)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[tuple[Any, ...]]:  # type: ignore[override]
        if isinstance(self.sampler, KeyedSampler):
            epoch, seen = self.sampler.seen
            now = self.sampler.epoch
            self._position = (now, seen // (self.batch_size or 1) if epoch == now else 0)
        for batch in made_ahead(self._checked(), self._made, self.device):
            self._position = (self._position[0], self._position[1] + 1)
            yield batch

    def _checked(self) -> Iterator[Sequence[Batch]]:
        """The parts of each batch, as they were drawn. Raises UserError for what cannot be read."""
        counted, unreadable, padded = False, "", isinstance(self.sampler, EvalSampler)
        for parts in self._drawn():
            lines = [line for part in parts for line in part.unreadable]
            targets = torch.cat([part.targets for part in parts])
            self.dataset.unreadable.check(Batch(targets=targets, unreadable=lines, error=parts[-1].error))
            unreadable = unreadable or next(iter(lines), "")
            # Without labels training images have the target of padding, which evaluation alone has.
            counted = counted or (len(targets) > 0 and (not padded or bool((targets != IGNORED).any())))
            yield parts
        if unreadable and not counted:
            raise UserError(f"no image can be read, as {unreadable}")

    def _drawn(self) -> Iterator[Sequence[Batch]]:
        """The parts of each batch, in order; a batch with an error ends with it."""
        kept = None
        if isinstance(self.sampler, EvalSampler):
            kept = self.kept
            yield from ([batch] for batch in kept or ())
            self.sampler.seen = len(kept or ()) * (self.batch_size or 1)
            if kept and len(kept) == len(self):
                return
        for parts in self._from_workers():
            if not parts[-1].error and not any(len(part.targets) for part in parts):
                parts = [self.dataset.none_read(joined(parts))]
            if kept is not None and not parts[-1].error:
                parts = [joined(parts).copied()]
                kept += parts
            yield parts

    def _from_workers(self) -> Iterator[list[Batch]]:
        with block_stop_signals():
            drawn = super().__iter__()
        parts: list[Batch] = []
        asked = 0
        for part in drawn:
            parts.append(part)
            asked += part.asked
            if part.error or asked == self.batch_sampler.batch_size:  # type: ignore[union-attr]
                yield parts
                parts, asked = [], 0
        if parts:  # the last batch may be smaller
            yield parts

    def _made(self, parts: Sequence[Batch]) -> tuple[Any, ...]:
        batch = joined([part.to(self.device) for part in parts])
        pair = self.dataset.normalised(batch), batch.targets
        return (*pair, batch.extras) if batch.extras else pair

    def state_dict(self) -> dict[str, int]:
        """The epoch that is under way and how many of its batches were given out."""
        epoch, batches = self._position
        return {"epoch": epoch, "batches": batches}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Begin that epoch, when it comes, after the batches that were given out; Lightning calls this."""
        if isinstance(self.sampler, KeyedSampler):
            self.sampler.seen = (state_dict["epoch"], state_dict["batches"] * (self.batch_size or 1))


class _Parts:
    """Lists of keys, cut so that each worker makes a part of every batch."""

    def __init__(self, batches: Iterable[list[Any]], workers: int):
        self.batches, self.workers = batches, workers

    def __iter__(self) -> Iterator[list[Any]]:
        for keys in self.batches:
            size = max(LEAST, -(-len(keys) // self.workers)) if self.workers else len(keys)
            for first in range(0, len(keys), size):
                yield keys[first : first + size]


def as_drawn(batch: Any) -> Any:
    """The collate function: the data sets here stack their batches themselves."""
    return batch


class _Work(Dataset[Any]):
    def __init__(self, work: Callable[[list[int]], Any], indices: Sequence[int]):
        self.work, self.indices = work, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitems__(self, places: list[int]) -> Any:
        return self.work([int(self.indices[place]) for place in places])


def in_batches(
    work: Callable[[list[int]], Any], indices: Any, batch_size: int, num_workers: int
) -> DataLoader[Any]:
    """`work(indices of a batch)` for each batch of `indices` [N], in order, by up to `num_workers` processes.

    `work` is to be picklable. No global generator is touched.
    """
    batches = -(-len(indices) // batch_size)
    workers = min(num_workers, batches) if batches > 1 else 0  # a process costs more than one batch
    return DataLoader(
        _Work(work, indices),
        batch_size=batch_size,
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=as_drawn,
        generator=torch.Generator(),  # its own: the global one would be drawn from
    )
