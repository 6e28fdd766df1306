"""DataLoaders whose data sets make a whole batch at once, and what happens to images that cannot be read."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from distill_dynamics.data.keyed import KeyedSampler
from distill_dynamics.errors import UserError
from distill_dynamics.signals import block_stop_signals

if TYPE_CHECKING:
    from distill_dynamics.data.images import Images


IGNORED = -100
"""The target of a padding item: not to be counted (torch's `ignore_index`)."""


class Batch(NamedTuple):
    """A batch as a worker draws it. Errors travel in it: torch makes a page of one that a worker raises."""

    images: Tensor = torch.empty(0)
    """float32 [B,C,H,W]"""
    targets: Tensor = torch.empty(0, dtype=torch.int64)
    """[B]"""
    extras: dict[str, Tensor] | None = None
    """What else is known of the images, [B, ...] each: their "index", a teacher's answers."""
    unreadable: Sequence[str] = ()
    """One line for each image that cannot be read and is missing."""
    error: UserError | None = None
    """What keeps the whole batch from being drawn."""


class Unreadable:
    """What happens to image files that cannot be read: an error, or, with `skip`, a list of them."""

    def __init__(self, skip: bool = False):
        self.skip = skip
        self.lines: dict[str, None] = {}  # a set that keeps its order

    def check(self, batch: Batch) -> None:
        """`report` of a batch's images. Raises UserError also where the batch could not be drawn at all."""
        if batch.error is not None:  # a new one: the old, in its own traceback, would keep the workers alive
            raise UserError(*batch.error.args)
        self.report(batch.unreadable, len(batch.targets))

    def report(self, lines: Sequence[str], left: int) -> None:
        """Takes note of the unreadable files of a batch of which `left` images are left.

        Raises UserError naming a file when they are not to be skipped, or when nothing is left.
        """
        for line in lines:
            if not self.skip:
                raise UserError(
                    f"unreadable image {line} "
                    "(data.skip_unreadable: true leaves such images out and counts them)"
                )
            if left == 0:
                raise UserError(f"none of the images asked for can be read, as {line}")
            if line not in self.lines:
                self.lines[line] = None
                if len(self.lines) <= 3:
                    warnings.warn(f"left out unreadable image {line}", stacklevel=2)
                if len(self.lines) == 3:
                    warnings.warn("further unreadable images are only counted", stacklevel=2)


class ImageLoader(DataLoader[tuple[Tensor, Tensor]]):
    """A DataLoader over `Images` that yields (images, targets), and extras as a third part if there are some.

    Unreadable files are reported here, in the main process, so that the user sees one line and not a worker's
    traceback. Over a `KeyedSampler` it can be saved and continued in the middle of an epoch: what was seen is
    not drawn again.
    """

    dataset: "Images"
    _position = (0, 0)  # the epoch that is under way, and how many of its batches were given out

    def __iter__(self) -> Iterator[tuple[Any, ...]]:  # type: ignore[override]
        if isinstance(self.sampler, KeyedSampler):
            epoch, seen = self.sampler.seen
            now = self.sampler.epoch
            self._position = (now, seen // (self.batch_size or 1) if epoch == now else 0)
        with block_stop_signals():
            batches = super().__iter__()
        counted, unreadable = False, ""
        for batch in batches:
            self.dataset.unreadable.check(batch)
            unreadable = unreadable or next(iter(batch.unreadable), "")
            counted = counted or bool((batch.targets != IGNORED).any())
            self._position = (self._position[0], self._position[1] + 1)
            pair = batch.images, batch.targets
            yield (*pair, batch.extras) if batch.extras else pair
        if unreadable and not counted:
            raise UserError(f"no image can be read, as {unreadable}")

    def state_dict(self) -> dict[str, int]:
        """The epoch that is under way and how many of its batches were given out."""
        epoch, batches = self._position
        return {"epoch": epoch, "batches": batches}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Begin that epoch, when it comes, after the batches that were given out; Lightning calls this."""
        if isinstance(self.sampler, KeyedSampler):
            self.sampler.seen = (state_dict["epoch"], state_dict["batches"] * (self.batch_size or 1))


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
