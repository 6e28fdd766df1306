"""What a build will store and what it will take, before it begins."""

from __future__ import annotations

import os
import shutil
import time
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from distill_dynamics.errors import UserError
from distill_dynamics.models.input_size import teacher_side
from distill_dynamics.teacher_cache.cache import TeacherCache
from distill_dynamics.teacher_cache.fields import LOGITS
from distill_dynamics.teacher_cache.layout import Field, Layout
from distill_dynamics.teacher_cache.rows import rows_of
from distill_dynamics.teacher_cache.scale import Scale
from distill_dynamics.teacher_cache.views import Views

CHEAP_SHARE = 0.1
"""Share of the teacher's work up to which its first blocks are run while training, and not stored."""


def plan(views: Views, top_k: int) -> TeacherCache:
    """Which answers are stored and which computed while training.

    Raises UserError where that is nothing, and where the losses need all classes.
    """
    teacher, data = views.teacher.backbone, views.data
    online = cheap_depth(views)
    fields: dict[str, Field] = {}
    temperature = 1.0
    if views.reads_logits:
        kept = min(top_k, teacher.num_classes)
        temperature = _temperature(views, kept < teacher.num_classes)
        fields["log_probs"] = Field((kept,), "float16")
        if kept < teacher.num_classes:
            fields["classes"] = Field((kept,), "uint16" if teacher.num_classes <= 2**16 else "int32")
            fields["rest"] = Field((), "float32")
    stored = {
        part.name: Field(part.shape, "float16")
        for reader in views.readers
        if (part := views.parts.get(reader.key))
        and (reader.wanted.block is None or reader.wanted.block > online)
    }
    if not (fields | stored):
        raise UserError(
            f"cache-teacher: nothing to store of {teacher.name}: no term reads its logits, and the blocks "
            "that the terms look at are cheap to run while training"
        )
    layout = Layout.of(len(data.sources["train"].targets), data.views, fields | stored)
    _, answers = views.answers(views.sample().images, stored, logits=False)
    scales = {name: Scale.of(values.cpu()) for name, values in answers.items()}
    return TeacherCache(
        views.folder, views.made_by, layout, scales, teacher.num_classes, temperature, online, {}, {}
    )


def _temperature(views: Views, cut: bool) -> float:
    """At which the likeliest classes are stored: that of the losses that can do with them.

    Raises UserError for a `cut` where a loss needs all classes, or temperatures differ or change.
    """
    losses = {r.wanted.term: r.loss for r in views.readers if r.wanted.word in LOGITS}
    able = [name for name, loss in losses.items() if getattr(loss, "takes_top_classes", False)]
    temperatures = {getattr(losses[name], "temperature", None) for name in able}
    if cut:
        needs = [name for name in losses if name not in able]
        if needs or len(temperatures) > 1 or any(callable(t) for t in temperatures):
            why = f"term {needs[0]} reads" if needs else "temperatures that differ or change need"
            raise UserError(
                f"--top_k: {why} the logits of all classes: give {views.teacher.backbone.num_classes} or more"
            )
    numbers = [t for t in temperatures if isinstance(t, (int, float))]
    return float(numbers[0]) if len(numbers) == 1 else 1.0


def cheap_depth(views: Views) -> int:
    """How many of the teacher's first blocks take `CHEAP_SHARE` of its floating-point operations at most.

    Counted and not timed, so that the same command makes the same files.
    """
    teacher = views.teacher.backbone
    blocks = range(1, len(teacher.layers) + 1)
    total = operations(views, [*blocks[-1:]], logits=teacher.num_classes > 0)
    return bisect_right(blocks, CHEAP_SHARE * total, key=lambda n: operations(views, [n], logits=False))


def operations(views: Views, layers: list[int], logits: bool) -> int:
    """Of matrix products and convolutions, for an image, up to these layers or the teacher's end."""
    teacher = views.teacher.backbone
    side, channels = teacher_side(teacher, views.data), teacher.input_size[0]
    weight = next(teacher.parameters())
    image = torch.zeros(1, channels, side, side, device=weight.device, dtype=weight.dtype)
    counter = FlopCounterMode(display=False)
    # One kind of attention and no compiled code: the count is that of every device.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        teacher.forward(image, layers, logits=logits)
    return counter.get_total_flops()


def expected_seconds(views: Views, stored: TeacherCache, fields: list[str], count: int) -> float:
    """For so many views, shared by all ranks: loading as well as the teacher."""
    images, loading = views.sample()
    times = []
    with views.trainer.precision_plugin.forward_context():
        for _ in range(3):  # the first warms up; rows are on the CPU, so that a GPU is waited for
            began = time.perf_counter()
            rows_of(stored, *views.answers(images, fields, bool(stored.logit_fields())))
            times.append(time.perf_counter() - began)
    computing = min(times) / len(images)
    workers = min(views.data.num_workers, os.cpu_count() or 1)
    each = max(loading / workers, computing) if workers else loading + computing
    return count * each / views.trainer.world_size


def check_room(caches: Sequence[tuple[str, Path, int]], cut: bool) -> None:
    """UserError where a disk has no room for all: where each is set, its folder, the bytes that it lacks.

    `cut` where logits are stored.
    """
    on_disk: dict[int, int] = {}
    for key, folder, lacking in caches:
        parent = existing(folder)
        disk = parent.stat().st_dev
        on_disk[disk] = on_disk.get(disk, 0) + lacking
        free = shutil.disk_usage(parent).free
        if on_disk[disk] > 0.99 * free:
            what = "the cache" if on_disk[disk] == lacking else "the cache, with those before it,"
            raise UserError(
                f"{key}: {what} takes {size_text(on_disk[disk])} and {parent} has {size_text(free)} free: "
                f"fewer views, {'a smaller --top_k, ' if cut else ''}or another disk"
            )


def existing(folder: Path) -> Path:
    """The folder, or where it is to be made."""
    return next(place for place in [folder, *folder.absolute().parents] if place.is_dir())


def free_text(folder: Path) -> str:
    """How much the disk of a folder has free."""
    return size_text(shutil.disk_usage(existing(folder)).free)


def size_text(number: float) -> str:
    """Bytes, with three digits."""
    return tqdm.format_sizeof(number, "B")
