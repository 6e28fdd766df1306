"""`cache-teacher`: run the teacher over every view once and write its answers, or check those written.

Letters: B batch, C channels, H W grid, K classes.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from distill_dynamics.data.images import ImageLoader
from distill_dynamics.data.keyed import View
from distill_dynamics.distiller import Distiller, datamodule
from distill_dynamics.errors import UserError
from distill_dynamics.files import whole
from distill_dynamics.losses.logits import top_classes
from distill_dynamics.teacher_cache.cache import TeacherCache, identity, stored_name
from distill_dynamics.teacher_cache.shards import Field, Layout, Shard, check_shard, missing, write_shard

CHEAP = 0.1
"""Share of the teacher's time up to which its first blocks are run while training, and not stored."""

VERIFIED = 256
"""Views that are computed again to verify a cache."""

CLOSE = 0.02
"""How far, in parts of the larger of 1 and the value, an answer computed again may be from the stored one:
float16 rounds by 0.0005, the rest is for devices that do not always add in one order."""


class _OverViews(Distiller):
    """A Distiller that trains nothing: Lightning's `predict` shows augmented views to its teacher."""

    folder: Path
    """Of the cache; set before."""

    def setup(self, stage: str) -> None:
        """Find out what cannot work before anything is done."""
        if self.teacher is None:
            raise UserError("cache-teacher: model.teacher is missing, so there is nothing to cache")
        if self.shard_teacher:
            raise UserError(
                "cache-teacher: a sharded teacher cannot be cached; set model.shard_teacher: false"
            )
        self.data = datamodule(self.trainer)
        if self.data.views is None:
            raise UserError(
                "cache-teacher: give data.init_args.views, how many augmented views of each image there are "
                "(training goes through them in turn)"
            )
        self.data.setup("fit")
        super().setup(stage)
        # Lightning asks for it when the models are on their device, which a plan has to be measured on.
        self.data.predict_dataloader = self.views_dataloader
        self.told = self.trainer.is_global_zero
        self.made_by = identity(self.teacher, self.data)
        self.shapes = self.part_shapes()
        self.named_parts = {
            (term, i): stored_name(self.pairs[term][i][1], shape) for (term, i), shape in self.shapes.items()
        }

    def views_dataloader(self) -> ImageLoader:
        """The views that this rank shows its teacher."""
        raise NotImplementedError

    def read_cache(self) -> TeacherCache:
        """The one in the folder, if it is of this run's teacher, views and terms."""
        stored = TeacherCache.read(self.folder)
        stored.check(self.made_by)
        self.use(stored)
        return stored

    @torch.no_grad()
    def rows(self, images: Tensor, stored: TeacherCache) -> dict[str, NDArray[Any]]:
        """Images [B, C, H, W] as the DataModule gives them → the rows of a cache, by field."""
        assert self.teacher is not None
        fields = stored.layout.fields
        named = self.named_parts
        layers = sorted({self.pairs[term][i][1] for (term, i), name in named.items() if name in fields})
        found = self.teacher(self.for_teacher(images), layers, logits="log_probs" in fields)
        parts = self.teacher_parts(dict(zip(layers, found.maps, strict=True)))
        tensors = {named[pair]: part for pair, part in parts.items()}
        if "log_probs" in fields:
            top = top_classes(found.logits, fields["log_probs"].shape[0], stored.temperature)
            tensors |= top._asdict()
        return {name: tensors[name].to("cpu").numpy().astype(field.dtype) for name, field in fields.items()}


class CacheBuilder(_OverViews):
    """Writes the shards that are missing, each rank its share; a build that was killed goes on.

    Raises:
        UserError: no teacher or no views, a disk that is too small, a folder that something else wrote, or a
            cache that other pixels or another teacher made.
    """

    top_k: int = 100
    """Classes kept of each answer; all where there are no more."""

    def views_dataloader(self) -> ImageLoader:
        """Plan the cache, or take up its plan; then the shards that are missing, batch by batch."""
        if (self.folder / "cache.json").exists():
            self.stored = self.read_cache()
        else:
            planned: Any = self._plan() if self.told else None
            self.stored = self.trainer.strategy.broadcast(planned)
        layout = self.stored.layout
        lacking = missing(self.folder, layout)
        self._views = _ViewsOf(lacking[self.trainer.global_rank :: self.trainer.world_size])
        self._open: dict[Shard, dict[str, NDArray[Any]]] = {}
        if self.told:
            self._announce(len(lacking))
        return self.data.views_dataloader(self._views)

    def predict_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        """Compute the rows of a batch; write the shards that end in it."""
        images, _, place = batch
        rows = self.rows(images, self.stored)
        size = self.data.eval_batch_size
        first, last = batch_idx * size, min((batch_idx + 1) * size, len(self._views))
        # Not all that were planned may be there: images that cannot be read keep rows of zeros.
        where = list(zip(place["view"].tolist(), place["image"].tolist(), strict=True))
        for shard in self._views.shards_of(first, last):
            if shard not in self._open:
                self._open[shard] = self._empty(shard)
            here = [i for i, (view, n) in enumerate(where) if view == shard.view and n in range(*shard[1:])]
            at = [where[i][1] - shard.first for i in here]
            for name, values in rows.items():
                self._open[shard][name][at] = values[here]
            if self._views.end_of(shard) <= last:
                write_shard(self.folder, self.stored.layout, shard, self._open.pop(shard))

    def _empty(self, shard: Shard) -> dict[str, NDArray[Any]]:
        fields = self.stored.layout.fields
        return {n: np.zeros((shard.last - shard.first, *f.shape), f.dtype) for n, f in fields.items()}

    def on_predict_end(self) -> None:
        """Say that it is done, when every rank is."""
        self.trainer.strategy.barrier()
        if self.told:
            self.stored.check_whole()
            print(f"\n  {self.folder} is whole; train with --model.teacher_cache {self.folder}\n")

    def _plan(self) -> TeacherCache:
        """Which maps are stored and which computed while training, what that takes, and whether it fits."""
        if self.folder.exists() and any(self.folder.iterdir()):
            raise UserError(f"--out: {self.folder} holds other files; choose a new folder")
        assert self.teacher is not None
        whole_time = self._seconds([], logits=True)
        online, deeper = 0, list(self.teacher_layers)
        while deeper and self._seconds(deeper[:1], logits=False) <= CHEAP * whole_time:
            online = deeper.pop(0)
        fields: dict[str, Field] = {}
        if self.alpha > 0:
            kept = min(self.top_k, self.teacher.num_classes)
            fields["log_probs"] = Field((kept,), "float16")
            if kept < self.teacher.num_classes:
                fields["classes"] = Field((kept,), "uint16" if self.teacher.num_classes <= 2**16 else "int32")
                fields["rest"] = Field((), "float32")
        for (term, i), name in self.named_parts.items():
            if self.pairs[term][i][1] > online:
                fields[name] = Field(self.shapes[term, i], "float16")
        if not fields:
            raise UserError(
                "cache-teacher: nothing to store: alpha is 0, and the blocks that the terms look at are "
                "cheap to run while training"
            )
        layout = Layout.of(len(self.data.sources["train"].targets), self.data.views, fields)
        parent = next(folder for folder in [self.folder, *self.folder.absolute().parents] if folder.is_dir())
        free = shutil.disk_usage(parent).free
        if layout.bytes > 0.99 * free:
            raise UserError(
                f"--out: the cache takes {_size(layout.bytes)} and {parent} has {_size(free)} free: fewer "
                "views, a smaller --top_k, or another disk"
            )
        accuracy = self._measure_teacher(self.teacher)
        stored = TeacherCache(
            self.folder,
            self.made_by,
            layout,
            self.teacher.num_classes,
            self.soft_kd.temperature,
            online,
            accuracy,
        )
        with whole(self.folder / "cache.json") as partial:
            partial.write_text(json.dumps(stored.to_json(), indent=1) + "\n")
        return stored

    def _announce(self, lacking: int) -> None:
        """How large, and how long it takes."""
        stored, layout = self.stored, self.stored.layout
        images = self._zeros()
        with self.trainer.precision_plugin.forward_context():
            seconds = _seconds(lambda: self.rows(images, stored)) / len(images)
        print(
            f"\n  {layout.images} images x {layout.views} views: {_size(layout.bytes)}, "
            f"{_size(layout.row_bytes)} a view"
        )
        if "log_probs" in layout.fields:
            kept = layout.fields["log_probs"].shape[0]
            print(f"  logits           the {kept} likeliest of {stored.classes} classes, stored")
        for (term, i), name in self.named_parts.items():
            s, t = self.pairs[term][i]
            how = (
                f"stored, {_size(layout.fields[name].row_bytes)} a view"
                if name in layout.fields
                else ("computed while training (at most a tenth of the teacher)")
            )
            print(f"  {term:16} student block {s} with teacher block {t}: {how}")
        total = len(layout.shards())
        print(
            f"  {total - lacking} of {total} shards are there; the teacher alone takes about "
            f"{_duration(len(self._views) * seconds)} for the rest\n"
        )

    def _zeros(self) -> Tensor:
        data = self.data
        return torch.zeros(
            data.eval_batch_size, len(data.mean), data.image_size, data.image_size, device=self.device
        )

    def _seconds(self, layers: list[int], logits: bool) -> float:
        """Of the teacher, a batch, up to these layers or its end."""
        images, teacher = self._zeros(), self.teacher
        assert teacher is not None
        with torch.no_grad(), self.trainer.precision_plugin.forward_context():
            return _seconds(lambda: teacher(images, layers, logits=logits))


class CacheVerifier(_OverViews):
    """Reads every shard of a cache against its checksums, and computes some views again.

    Raises:
        UserError: what is missing, damaged or different.
    """

    def views_dataloader(self) -> ImageLoader:
        """Views drawn at random, each rank its own."""
        self.stored = self.read_cache()
        self.stored.check_whole()
        layout = self.stored.layout
        for shard in tqdm(layout.shards(), "Checksums", unit=" shards", disable=None if self.told else True):
            check_shard(self.folder, layout, shard)
        rng = np.random.default_rng()
        drawn = [
            View(int(rng.integers(layout.views)), int(rng.integers(layout.images))) for _ in range(VERIFIED)
        ]
        self._answers, self._worst = self.stored.answers(), 0.0
        return self.data.views_dataloader(drawn)

    def predict_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        """Compare."""
        images, _, place = batch
        views = [View(*pair) for pair in zip(place["view"].tolist(), place["image"].tolist(), strict=True)]
        expected = self._answers(views)
        for name, rows in self.rows(images, self.stored).items():
            if name == "classes":
                continue  # two that are equally likely may have changed places
            there = expected[name].double().numpy()
            off = np.abs(rows - there) / np.maximum(1, np.abs(there))
            self._worst = max(self._worst, float(off.max()))
            if self._worst > CLOSE:
                row = int(off.reshape(len(off), -1).max(axis=1).argmax())
                raise UserError(
                    f"{self.folder}: {name} of image {views[row].image}, view {views[row].view} is not what "
                    f"the teacher answers now (off by {self._worst:.3g}); build the cache anew"
                )

    def on_predict_end(self) -> None:
        """Say that all is well."""
        if self.told:
            shards = len(self.stored.layout.shards())
            print(
                f"\n  {self.folder}: {shards} shards are what was written, and {VERIFIED} views computed "
                f"again are within {self._worst:.2g} of what is stored\n"
            )


class _ViewsOf(Sequence[View]):
    """All views of some shards, in their order."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self.shards = shards
        self.ends = np.cumsum([shard.last - shard.first for shard in shards], dtype=np.int64)

    def __len__(self) -> int:
        return int(self.ends[-1]) if self.shards else 0

    def __getitem__(self, place: Any) -> Any:
        if not 0 <= place < len(self):
            raise IndexError(place)
        number = int(np.searchsorted(self.ends, place, side="right"))
        shard = self.shards[number]
        return View(shard.view, shard.last - int(self.ends[number] - place))

    def shards_of(self, first: int, last: int) -> Sequence[Shard]:
        """Those that the views from `first` to `last` (excluded) are of."""
        begin, end = np.searchsorted(self.ends, [first, last - 1], side="right")
        return self.shards[int(begin) : int(end) + 1]

    def end_of(self, shard: Shard) -> int:
        """The place after its last view."""
        return int(self.ends[self.shards.index(shard)])


def _seconds(run: Callable[[], object]) -> float:
    """The shortest of three, after one to warm up."""
    times = []
    for _ in range(4):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        began = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return min(times[1:])


def _size(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
