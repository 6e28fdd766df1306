"""The teacher: a frozen model that answers to batches of the data."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor

from distill_dynamics.models.backbone import Backbone
from distill_dynamics.models.features import LOGITS, POOLED, Read, TeacherOutputs, Wanted, read
from distill_dynamics.models.input_size import teacher_side, views_side
from distill_dynamics.models.normalise import Renormalise
from distill_dynamics.models.sharding import is_sharded

Precision = Literal["32-true", "16-mixed", "bf16-mixed"]
_HALF = {"32-true": None, "16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}


class Teacher:
    """A backbone in eval mode for good, without gradients, in its own precision.

    No module: it is in no checkpoint, no optimiser, no gradient reduction and no copy of the student.

    Args:
        backbone: the model.
        precision: what it computes in; None is what surrounds it. Its weights stay as they are.
        channels_last: store images with the channels last.
        sharded: `shard` is to be called before the first batch; until then it stays where it is.
        name: of one of `model.teachers`; "" of the one `model.teacher`.
        is_first: whether files and metrics call it "teacher", as they do the only one, and not by its name.
        cache: folder of its stored answers.
    """

    def __init__(
        self,
        backbone: Backbone,
        precision: Precision | None = None,
        channels_last: bool = False,
        sharded: bool = False,
        name: str = "",
        is_first: bool = True,
        cache: str | None = None,
    ) -> None:
        self.name = name
        self.role = "teacher" if is_first else f"teacher_{name}"
        self.backbone = backbone.requires_grad_(False).eval()
        self.precision, self.cache = precision, cache
        self.sharded = sharded
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.renormalise: Callable[[Tensor], Tensor] = Renormalise.nothing
        self.digest: str | None = None
        """Of its weights (`weights_digest`), once training is set up; None of one that is sharded."""
        self.accuracy: dict[str, float] = {}
        """acc1 and acc5 in percent on the validation images, once they are measured; without classes the
        quality of its features (`feature_quality`)."""

    @property
    def key(self) -> str:
        """Its place in a config."""
        return f"model.teachers.{self.name}" if self.name else "model.teacher"

    def key_of(self, setting: str) -> str:
        """That of its "precision", "cache" or "shard"."""
        of_the_one = {"precision": "teacher_precision", "cache": "teacher_cache", "shard": "shard_teacher"}
        return f"{self.key}.{setting}" if self.name else f"model.{of_the_one[setting]}"

    @property
    def title(self) -> str:
        """What a person calls it."""
        return f"teacher {self.name}" if self.name else "teacher"

    def take_images_of(self, data: Any) -> None:
        """Have batches as `data` makes them be what is given from here on: of its normalisation and size."""
        own, side = self.backbone, teacher_side(self.backbone, data)
        resizes = {side, views_side(data)} != {data.image_size}
        self.renormalise = Renormalise(data.mean, data.std, own.mean, own.std, side if resizes else None)

    def images(self, batch: Tensor) -> Tensor:
        """A batch as the DataModule gives it, resized, normalised and laid out for this model."""
        return self.renormalise(batch).contiguous(memory_format=self.memory_format)

    def read(self, batch: Tensor, reads: Collection[Read]) -> dict[Read, Tensor]:
        """What is to be read of it, for a batch as the DataModule gives it."""
        own: AbstractContextManager = nullcontext()
        if self.precision is not None:
            half = _HALF[self.precision]
            own = torch.autocast(batch.device.type, half, enabled=half is not None)
        with torch.no_grad(), own:
            return read(self.backbone, self.images(batch), reads)

    def logits(self, batch: Tensor) -> Tensor:
        """[B, K] of a batch as the DataModule gives it."""
        return self.read(batch, {LOGITS})[LOGITS]

    def pooled(self, batch: Tensor) -> Tensor:
        """Features [B, D] of a batch as the DataModule gives it."""
        return self.read(batch, {POOLED})[POOLED]

    def __call__(
        self, batch: Tensor, wanted: Sequence[Wanted], stored: Mapping[str, Tensor] | None = None
    ) -> TeacherOutputs:
        """What the terms want of it, from one forward pass; there is nothing `stored` for this one."""
        outputs = self.read(batch, {(w.word, w.block) for w in wanted}) if wanted else {}
        return {(w.term, w.pair, w.word): outputs[w.word, w.block] for w in wanted}

    def move(self, fn: Callable) -> None:
        """Take part in a module's move to a device or dtype. One that is to be sharded may not fit whole."""
        if is_sharded(self.backbone) or not self.sharded:
            self.backbone._apply(fn)

    def facts(self) -> dict[str, Any]:
        """What it is, so that the accuracy of one is not taken for that of another."""
        own = {"weights": self.backbone.source, "digest": self.digest, "precision": self.precision}
        return self.backbone.description() | own


def of_teachers(
    teachers: Mapping[str, Callable[..., TeacherOutputs]],
    batch: Tensor,
    wanted: Sequence[Wanted],
    stored: Mapping[str, Tensor] | None = None,
) -> TeacherOutputs:
    """What the terms want of several, from one call of each that any of them wants something of."""
    outputs: TeacherOutputs = {}
    for name, teacher in teachers.items():
        if own := [one for one in wanted if one.teacher == name]:
            outputs |= teacher(batch, own, stored)
    return outputs
