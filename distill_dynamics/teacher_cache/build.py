"""`cache-teacher`: run the teacher over every view once and write its answers, or check those written.

Letters: B batch, C channels, H W grid, K classes.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from distill_dynamics.data.keyed import View
from distill_dynamics.errors import UserError
from distill_dynamics.files import remove_partial, whole
from distill_dynamics.losses.logits import softened, top_classes
from distill_dynamics.losses.maps import at_least_float32
from distill_dynamics.models.teacher_check import doubt, framed
from distill_dynamics.runs import lease
from distill_dynamics.teacher_cache.blocks import (
    Block,
    Field,
    Layout,
    Writer,
    check_block,
    make_files,
    missing,
    read_rows,
    rows_checksum,
)
from distill_dynamics.teacher_cache.cache import Scale, TeacherCache, validated_on
from distill_dynamics.train.distiller import Distiller, datamodule

CHEAP = 0.1
"""Share of the teacher's work up to which its first blocks are run while training, and not stored."""

TIMED = 64
"""Images that the time of a build is told from, at most: a plan should cost little beside what it plans."""

VERIFIED = 256
"""Views that are computed again to verify a cache."""

CLOSE = 0.02
"""How far an answer computed again may be from the stored one, in parts of the root mean square of its field
in a batch plus its own size: half precision rounds by 0.0005 of the latter, the rest is for devices that do
not always add in one order."""

LEAST = 1e-30
"""Where the logarithm of a probability ends, as far as it is compared."""


class _OverViews(Distiller):
    """A Distiller that trains nothing: Lightning's `predict` puts it on a device, and it shows its views.

    The views do not go through Lightning's loop, which would share them out anew, keep the key of each, and
    wait for ranks that have none.
    """

    folder: Path
    """Of the cache; set before."""

    shows_progress = True

    def setup(self, stage: str) -> None:
        """Find out what cannot work before anything is done."""
        if self.teacher is None:
            raise UserError("cache-teacher: model.teacher is missing, so there is nothing to cache")
        if self.shard_teacher:
            raise UserError(
                "cache-teacher: a sharded teacher cannot be cached; set model.shard_teacher: false"
            )
        self.data = datamodule(self.trainer)
        self.told = self.trainer.is_global_zero
        self.data.global_batch = None  # whose share a device takes matters to training alone
        self.data.setup("fit")
        self.made_by = self.answers_identity()
        if self.data.views is None:
            raise UserError(
                "cache-teacher: give data.init_args.views, how many augmented views of each image there are "
                "(training goes through them in turn)"
            )
        super().setup(stage)
        self.data.predict_dataloader = lambda: range(1)

    def predict_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        """All the work: it is Lightning's only batch."""
        raise NotImplementedError

    def read_cache(self) -> TeacherCache:
        """The one in the folder, if it is of this run's teacher, views and terms."""
        stored = TeacherCache.read(self.folder)
        stored.check(self.made_by)
        self.use(stored)
        return stored

    def shown(self, views: Sequence[View], title: str) -> Iterator[tuple[Tensor, list[View], list[View]]]:
        """Batches of views: images [B, C, H, W], the views that they are, and those that were asked for.

        These are more where images cannot be read and are to be left out.
        """
        if not views:
            return
        size = self.data.eval_batch_size
        hidden = not (self.told and self.shows_progress)
        with tqdm(total=len(views), desc=title, unit=" views", disable=hidden) as bar:
            for first, (images, _, place) in zip(
                range(0, len(views), size), self.data.views_dataloader(views), strict=True
            ):
                asked = [views[i] for i in range(first, min(first + size, len(views)))]
                pairs = zip(place["view"].tolist(), place["image"].tolist(), strict=True)
                images = self.trainer.precision_plugin.convert_input(images)
                yield self.transfer_batch_to_device(images, self.device, 0), [View(*p) for p in pairs], asked
                bar.update(len(asked))

    def answers(self, images: Tensor, parts: dict[tuple[str, int], str]) -> tuple[Any, dict[str, Tensor]]:
        """Logits [B, K], None without a head; and by field what the losses of these pairs see of the maps."""
        assert self.teacher is not None
        layers = sorted({self.pairs[term][i][1] for term, i in parts})
        found = self.ask_teacher(images, layers, self.teacher.num_classes > 0)
        with torch.no_grad():
            seen = self.teacher_parts(dict(zip(layers, found.maps, strict=True)))
        return found.logits, {name: at_least_float32(seen[pair]) for pair, name in parts.items()}


class _Sample(NamedTuple):
    """A batch that a build is planned by."""

    images: Tensor
    loading: float
    """Seconds an image, for one process."""


class CacheBuilder(_OverViews):
    """Writes the blocks that are missing, each rank its share; a build that was killed goes on.

    Raises:
        UserError: no teacher or no views, a disk that is too small, a folder that something else wrote or is
            writing to, a cache that other pixels, another teacher or other settings made, an answer that is
            not finite.
    """

    top_k: int = 100
    """Classes kept of each answer; all where there are no more."""

    def predict_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        """Plan the cache, or take up its plan; then write what is missing of it."""
        broadcast = self.trainer.strategy.broadcast
        # The first rank alone looks at the folder and decides; what it decides is told to the others.
        begun: Any = (self.folder / "cache.json").exists() if self.told else None
        if broadcast(begun):
            stored: Any = self._take_up() if self.told else None
        else:
            stored = self._plan() if self.told else None
            accuracy = self._measure_teacher() if self.teacher and self.alpha > 0 else {}
            if self.told and self.teacher and (warning := doubt(self.teacher, accuracy)):
                print(framed(warning), file=sys.stderr)
            if self.told:
                stored = self._begin(stored, accuracy)
        self.stored: TeacherCache = broadcast(stored)
        self.fields = {pair: name for pair, (name, _) in self.part_fields().items()}
        lacking: Any = self._lacking() if self.told else None
        lacking = broadcast(lacking)
        share = np.array_split(np.arange(len(lacking)), self.trainer.world_size)[self.trainer.global_rank]
        self._write([lacking[i] for i in share])
        self.trainer.strategy.barrier()
        if self.told:
            self.stored.check_whole()
            print(f"\n  {self.folder} is whole; train with --model.teacher_cache {self.folder}\n")

    # --- the first rank's -------------------------------------------------------------------------

    def _take_up(self) -> TeacherCache:
        """The plan that is there, if these settings make the same."""
        self._hold()
        stored = self.read_cache()
        logits = stored.layout.fields.get("log_probs")
        if logits is not None and logits.shape[0] != min(self.top_k, stored.classes):
            raise UserError(
                f"--top_k: {self.folder} was begun with {logits.shape[0]}; go on with that, or choose a new "
                "folder"
            )
        known = [*stored.logit_fields(), *(name for name, _ in self.part_fields().values())]
        if more := [name for name in stored.layout.fields if name not in known]:
            raise UserError(
                f"--out: {self.folder} was begun with terms that this config lacks ({more[0]}); go on with "
                "the config that began it, or choose a new folder"
            )
        return stored

    def _plan(self) -> TeacherCache:
        """Which maps are stored and which computed while training, what that takes, and whether it fits."""
        there = [path for path in self.folder.glob("*") if not path.name.startswith(".")]
        if self.folder.exists() and (there or not self.folder.is_dir()):
            raise UserError(f"--out: {self.folder} holds other files; choose a new folder")
        assert self.teacher is not None
        online = self._cheap_depth()
        fields: dict[str, Field] = {}
        if self.alpha > 0:
            kept = min(self.top_k, self.teacher.num_classes)
            fields["log_probs"] = Field((kept,), "float16")
            if kept < self.teacher.num_classes:
                fields["classes"] = Field((kept,), "uint16" if self.teacher.num_classes <= 2**16 else "int32")
                fields["rest"] = Field((), "float32")
        deep = {
            (term, i): field
            for (term, i), field in self.part_fields().items()
            if self.pairs[term][i][1] > online
        }
        fields |= {name: Field(shape, "float16") for name, shape in deep.values()}
        if not fields:
            raise UserError(
                "cache-teacher: nothing to store: alpha is 0, and the blocks that the terms look at are "
                "cheap to run while training"
            )
        layout = Layout.of(len(self.data.sources["train"].targets), self.data.views, fields)
        self._check_room(layout.bytes)
        _, maps = self.answers(self._sample().images, {pair: name for pair, (name, _) in deep.items()})
        return TeacherCache(
            self.folder,
            self.made_by,
            layout,
            {name: Scale.of(values.cpu()) for name, values in maps.items()},
            self.teacher.num_classes,
            self.soft_kd.temperature,
            online,
            {},
            {},
        )

    def _begin(self, planned: TeacherCache, accuracy: dict[str, float]) -> TeacherCache:
        """Write the plan."""
        self._hold()
        remove_partial(self.folder)
        # Streamed images lie in chunks: in their order each chunk is read about once a view.
        places = getattr(self.data.sources["train"], "places", np.arange(planned.layout.images))
        rows = np.asarray(places, dtype=np.int64)
        stored = replace(
            planned,
            accuracy=accuracy,
            validated_on=validated_on(self.data),
            rows_sha256=rows_checksum(rows),
        )
        with whole(self.folder / "rows.npy") as partial, partial.open("wb") as file:
            np.save(file, rows, allow_pickle=False)
        with whole(self.folder / "cache.json") as partial:
            partial.write_text(json.dumps(stored.to_json(), indent=1) + "\n")
        return stored

    def _hold(self) -> None:
        """Keep others from building in the folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            lease.hold(self.folder)
        except UserError as error:
            raise UserError(
                f"--out: another cache-teacher is building in {self.folder}: wait for it, or choose a new "
                "folder"
            ) from error

    def _lacking(self) -> list[Block]:
        """The blocks to be written, when there is a place for them and it was said how long it takes."""
        layout = self.stored.layout
        make_files(self.folder, layout)
        lacking = missing(self.folder, layout)
        rows = sum(last - first for _, first, last in lacking)
        self._check_room(rows * layout.row.itemsize)
        print(
            f"\n  {layout.images} images x {layout.views} views: {_size(layout.bytes)}, "
            f"{_size(layout.row.itemsize)} a view"
        )
        if "log_probs" in layout.fields:
            kept = layout.fields["log_probs"].shape[0]
            print(f"  logits           the {kept} likeliest of {self.stored.classes} classes, stored")
        for (term, i), name in self.fields.items():
            s, t = self.pairs[term][i]
            how = (
                f"stored, {_size(layout.fields[name].bytes)} a view"
                if name in layout.fields
                else "computed while training (at most a tenth of the teacher)"
            )
            print(f"  {term:16} student block {s} with teacher block {t}: {how}")
        total = len(layout.blocks())
        takes = f"; the rest takes about {_duration(self._expected(rows))}" if rows else ""
        print(f"  {total - len(lacking)} of {total} blocks are there{takes}\n")
        return lacking

    def _expected(self, rows: int) -> float:
        """Seconds for so many views, shared by all ranks: loading as well as the teacher."""
        images, loading = self._sample()
        stored = self.stored
        with self.trainer.precision_plugin.forward_context():
            computing = _seconds(lambda: _rows(stored, *self.answers(images, self._stored_parts())))
        computing /= len(images)
        workers = min(self.data.num_workers, os.cpu_count() or 1)
        each = max(loading / workers, computing) if workers else loading + computing
        return rows * each / self.trainer.world_size

    def _cheap_depth(self) -> int:
        """How many of the teacher's first blocks take `CHEAP` of its floating-point operations at most.

        Counted and not timed, so that the same command makes the same files.
        """
        assert self.teacher is not None
        blocks = len(self.teacher.layers)
        all_of_it = self._operations([blocks] if blocks else [], logits=self.teacher.num_classes > 0)
        most, beyond = 0, blocks + 1
        while beyond - most > 1:
            middle = (most + beyond) // 2
            if self._operations([middle], logits=False) <= CHEAP * all_of_it:
                most = middle
            else:
                beyond = middle
        return most

    def _operations(self, layers: list[int], logits: bool) -> int:
        """Of matrix products and convolutions, for an image, up to these layers or the teacher's end."""
        assert self.teacher is not None
        weight = next(self.teacher.parameters())
        side = self.data.image_size
        image = torch.zeros(1, len(self.data.mean), side, side, device=weight.device, dtype=weight.dtype)
        counter = FlopCounterMode(display=False)
        # One kind of attention and no compiled code: the count is that of every device.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
            self.teacher.forward(image, layers, logits=logits)
        return counter.get_total_flops()

    def _sample(self) -> _Sample:
        """Views spread over the images."""
        count, size = len(self.data.sources["train"].targets), min(self.data.eval_batch_size, TIMED)
        order = [View(0, int(image)) for image in np.linspace(0, count - 1, min(count, size))]
        loader = self.data.views_dataloader(order)
        began = time.perf_counter()
        # In this process: starting others for one batch would take longer than the batch.
        images, _, lines, _ = loader.dataset.__getitems__(list(loader.sampler))
        seconds = time.perf_counter() - began
        loader.dataset.unreadable.report(lines, len(images))
        images = self.trainer.precision_plugin.convert_input(images)
        return _Sample(self.transfer_batch_to_device(images, self.device, 0), seconds / len(order))

    def _check_room(self, lacking: int) -> None:
        parent = next(folder for folder in [self.folder, *self.folder.absolute().parents] if folder.is_dir())
        free = shutil.disk_usage(parent).free
        if lacking > 0.99 * free:
            raise UserError(
                f"--out: the cache takes {_size(lacking)} and {parent} has {_size(free)} free: fewer "
                "views, a smaller --top_k, or another disk"
            )

    # --- every rank's -----------------------------------------------------------------------------

    def _stored_parts(self) -> dict[tuple[str, int], str]:
        return {pair: name for pair, name in self.fields.items() if name in self.stored.layout.fields}

    def _write(self, blocks: Sequence[Block]) -> None:
        layout, parts = self.stored.layout, self._stored_parts()
        writer = Writer(self.folder, layout, blocks)
        images_of = np.argsort(read_rows(self.folder, layout))
        for images, views, asked in self.shown(_ViewsOf(blocks, images_of), "Teacher"):
            rows = np.zeros(len(asked), layout.row)
            for name in layout.fields:
                if rows[name].dtype.kind == "f":
                    rows[name] = np.nan  # of an image that cannot be read
            place = {view: i for i, view in enumerate(asked)}
            at = [place[view] for view in views]
            for name, values in _rows(self.stored, *self.answers(images, parts)).items():
                rows[name][at] = _checked(name, values, rows[name].dtype, views)
            writer.write(rows)


class CacheVerifier(_OverViews):
    """Reads a cache against its checksums and computes some views again; each rank its share.

    Raises:
        UserError: what is missing, damaged or different.
    """

    def predict_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        """Compare."""
        stored = self.read_cache()
        stored.check_whole()
        layout, rank, world = stored.layout, self.trainer.global_rank, self.trainer.world_size
        hidden = not (self.told and self.shows_progress)
        for block in tqdm(layout.blocks()[rank::world], "Checksums", unit=" blocks", disable=hidden):
            check_block(self.folder, layout, block)
        rng, count = np.random.default_rng(), -(-VERIFIED // world)
        rows = np.sort(rng.integers(layout.images, size=count))
        images_of = np.argsort(read_rows(self.folder, layout))
        drawn = [View(int(rng.integers(layout.views)), int(images_of[row])) for row in rows]
        parts = {
            pair: name for pair, (name, _) in self.part_fields().items() if name in layout.fields
        }  # of a cache that holds more, those of this config's terms
        names = [*stored.logit_fields(), *dict.fromkeys(parts.values())]
        read = stored.answers(names)
        worst = 0.0
        for images, views, _ in self.shown(drawn, "Again"):
            logits, maps = self.answers(images, parts)
            there = read(views)
            if logits is not None and stored.logit_fields():
                now, then = _logits_of(logits.cpu(), there, stored.temperature)
                worst = max(worst, self._off("the logits", now, then, views))
            for name, values in maps.items():
                then = stored.part(there, name)
                worst = max(worst, self._off(name, values.float().cpu(), then, views))
        gathered: Any = self.all_gather(torch.tensor(worst, device=self.device))
        if self.told:
            untouched = [name for name in layout.fields if name not in names]
            print(
                f"\n  {self.folder}: {len(layout.blocks())} blocks are what was written, and {count * world} "
                f"views computed again are within {gathered.max():.2g} of what is stored"
                + (f"; not computed, for want of their terms: {', '.join(untouched)}" if untouched else "")
                + "\n"
            )

    def _off(self, name: str, now: Tensor, then: Tensor, views: Sequence[View]) -> float:
        """The largest deviation, as `CLOSE` counts it. UserError beyond that."""
        size = then.abs() + then.square().mean().sqrt()
        off = torch.where(now == then, 0, (now - then).abs() / size).flatten(1).amax(dim=1)
        off = off.nan_to_num(torch.inf, torch.inf)
        if not off.max() <= CLOSE:
            view = views[int(off.argmax())]
            raise UserError(
                f"{self.folder}: {name} of image {view.image}, view {view.view} is not what the teacher "
                f"answers now (off by {off.max():.3g} of its size); build the cache anew"
            )
        return float(off.max())


def _logits_of(logits: Tensor, there: dict[str, Tensor], temperature: float) -> tuple[Tensor, Tensor]:
    """Of logits [B, K] and what is stored: the logarithms of the stored classes, then of the rest, both."""
    now = softened(logits, temperature)
    then = there["log_probs"].float()
    if "classes" not in there:
        return now, then
    classes = there["classes"].long()
    if int(classes.max()) >= now.shape[1]:
        return torch.full_like(then, torch.nan), then
    # A class that is there twice counts twice in what is stored, and once here.
    others = now.exp().scatter(1, classes, 0.0).sum(dim=1, keepdim=True)
    twice = (classes.sort(dim=1).values.diff(dim=1) == 0).any(dim=1, keepdim=True)
    others = torch.where(twice, torch.nan, others)
    rest = there["rest"].float()[:, None]
    now, then = now.gather(1, classes), torch.cat([then, rest.clamp(min=LEAST).log()], dim=1)
    return torch.cat([now, others.clamp(min=LEAST).log()], dim=1), then


def _rows(stored: TeacherCache, logits: Tensor | None, maps: dict[str, Tensor]) -> dict[str, Tensor]:
    """A batch's answers as the cache holds them, before they are rounded; on the CPU."""
    rows = {name: stored.scales[name].stored(values) for name, values in maps.items()}
    if stored.logit_fields():
        assert logits is not None
        top = top_classes(logits, stored.layout.fields["log_probs"].shape[0], stored.temperature)
        rows |= {name: getattr(top, name) for name in stored.logit_fields()}
    return {name: values.to("cpu") for name, values in rows.items()}


def _checked(name: str, values: Tensor, dtype: np.dtype, views: Sequence[View]) -> NDArray[Any]:
    """A field's values in its type. UserError where they are not finite, or not in that type."""
    array = values.numpy()
    if dtype.kind == "f":
        most = float(np.finfo(dtype).max)
        bad = ~(np.abs(array).reshape(len(array), -1).max(axis=1) <= most)
        if bad.any():
            view, value = views[int(bad.argmax())], array[int(bad.argmax())]
            raise UserError(
                f"cache-teacher: {name} of image {view.image}, view {view.view} cannot be stored, it reaches "
                f"{np.abs(value).max():.3g} where {most:.6g} is the most (in deviations of its channel): "
                "train with the teacher itself, or without the term that needs it"
            )
    return array.astype(dtype)


class _ViewsOf(Sequence[View]):
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
