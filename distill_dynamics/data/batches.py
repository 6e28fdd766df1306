"""A batch as workers draw it, and what happens to images that cannot be read."""

import warnings
from collections.abc import Sequence
from functools import partial
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from distill_dynamics.data.erasing import Box
from distill_dynamics.errors import UserError

IGNORED = -100
"""The target of a padding item: not to be counted (torch's `ignore_index`)."""


class Batch(NamedTuple):
    """A batch, or a part of one, as a worker draws it: a quarter of the bytes of normalised images.

    Errors travel in it: torch makes a page of one that a worker raises.
    """

    pixels: Tensor = torch.empty(0)
    """uint8 [B,C,H,W]"""
    targets: Tensor = torch.empty(0, dtype=torch.int64)
    """[B]"""
    extras: dict[str, Tensor] | None = None
    """What else is known of the images, [B, ...] each: their "index", a teacher's answers."""
    unreadable: Sequence[str] = ()
    """One line for each image that cannot be read and is missing."""
    error: UserError | None = None
    """What keeps the whole batch from being drawn."""
    asked: int = 0
    """How many images were asked for."""
    boxes: Sequence[Box] = ()
    """The rectangles that are erased."""
    noise: Tensor = torch.empty(0)
    """What they are filled with (`Canvas.noise`)."""

    def to(self, device: torch.device) -> "Batch":
        """Itself with its tensors on a device; no wait for CUDA where they come from pinned memory."""
        # Others are waited for: what came to Apple's GPUs without was not always whole (pytorch 83015).
        there = partial(Tensor.to, device=device, non_blocking=device.type == "cuda")
        return self._replace(
            pixels=there(self.pixels),
            targets=there(self.targets),
            extras={name: there(values) for name, values in (self.extras or {}).items()},
            noise=there(self.noise),
        )

    def copied(self) -> "Batch":
        """Itself out of the memory that is shared with workers, of which there may be little."""
        extras = {name: values.clone() for name, values in (self.extras or {}).items()}
        return self._replace(pixels=self.pixels.clone(), targets=self.targets.clone(), extras=extras)


def joined(parts: Sequence[Batch]) -> Batch:
    """The batch that the parts make, one after the other."""
    if len(parts) == 1:
        return parts[0]
    read = [part for part in parts if len(part.targets)] or parts[:1]
    begins = accumulate((len(part.targets) for part in read), initial=0)
    extras = [part.extras or {} for part in read]
    return Batch(
        torch.cat([part.pixels for part in read]),
        torch.cat([part.targets for part in read]),
        {name: torch.cat([of_part[name] for of_part in extras]) for name in extras[0]},
        [line for part in parts for line in part.unreadable],
        asked=sum(part.asked for part in parts),
        boxes=[
            box._replace(image=begin + box.image)
            for begin, part in zip(begins, read, strict=False)
            for box in part.boxes
        ],
        noise=torch.cat([part.noise for part in read]),
    )


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
