"""`cache-teacher`: run the teacher over every view once and write its answers."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from tqdm import tqdm

from distill_dynamics.errors import UserError
from distill_dynamics.files import atomic_write, remove_partial
from distill_dynamics.models.teacher_check import doubt, framed, images_measured
from distill_dynamics.runs import lease
from distill_dynamics.teacher_cache.cache import TeacherCache
from distill_dynamics.teacher_cache.fields import shapes_seen
from distill_dynamics.teacher_cache.files import Writer, rows_checksum
from distill_dynamics.teacher_cache.fitted import NAME, write_fitted
from distill_dynamics.teacher_cache.identity import validated_on
from distill_dynamics.teacher_cache.layout import Block
from distill_dynamics.teacher_cache.plan import expected_seconds, free_text, size_text
from distill_dynamics.teacher_cache.rows import rounded, rows_of
from distill_dynamics.teacher_cache.teacher import CachedTeacher
from distill_dynamics.teacher_cache.views import Views, ViewsOf

BEFORE_THE_PLAN = (NAME, "rows.npy")
"""Files that are written before cache.json, by which a folder is a cache."""


class CacheBuilder:
    """Writes the blocks that are missing, each rank its share; a build that was killed goes on.

    Args:
        views: the teacher beside its data.
        top_k: classes kept of each answer; all where there are no more.

    Raises:
        UserError: a disk that is too small, a folder that something else wrote or is writing to, a cache that
            other pixels, another teacher or other settings made, an answer that is not finite.
    """

    def __init__(self, views: Views, top_k: int) -> None:
        self.views, self.top_k, self.folder = views, top_k, views.folder
        self.key = views.teacher.key_of("cache") if views.teacher.name else "--out"

    def found(self) -> TeacherCache | None:
        """The plan that is in the folder, if these settings make the same; to be called by the first rank."""
        if not (self.folder / "cache.json").exists():
            others = [
                path
                for path in self.folder.glob("*")
                if not path.name.startswith(".") and path.name not in BEFORE_THE_PLAN
            ]
            if self.folder.exists() and (others or not self.folder.is_dir()):
                raise UserError(f"{self.key}: {self.folder} holds other files; choose a new folder")
            return None
        stored = read_cache(self.views)
        logits = stored.layout.fields.get("log_probs")
        if logits is not None and logits.shape[0] != min(self.top_k, stored.classes):
            raise UserError(
                f"--top_k: {self.folder} was begun with {logits.shape[0]}; go on with that, or choose a new "
                "folder"
            )
        known = [*stored.logit_fields(), *(name for name, _ in self.views.parts.values())]
        if more := [name for name in stored.layout.fields if name not in known]:
            raise UserError(
                f"{self.key}: {self.folder} was begun with terms that this config lacks ({more[0]}); go on "
                "with the config that began it, or choose a new folder"
            )
        return stored

    def begin(
        self, planned: TeacherCache, accuracy: dict[str, float], terms: Mapping[str, Any]
    ) -> TeacherCache:
        """Write the plan; to be called by the first rank."""
        views, teacher = self.views, self.views.teacher
        classes, images = len(views.data.val_classes), images_measured(views.data)
        if warning := doubt(teacher.backbone, accuracy, classes, teacher.key, teacher.title, images):
            print(framed(warning), file=sys.stderr)
        # Streamed images lie in chunks: in their order each chunk is read about once a view.
        places = getattr(views.data.sources["train"], "places", np.arange(planned.layout.images))
        rows = np.asarray(places, dtype=np.int64)
        stored = replace(
            planned,
            accuracy=accuracy,
            validated_on=validated_on(views.data),
            rows_sha256=rows_checksum(rows),
        )
        seen = shapes_seen([*views.readers], views.parts)
        write_fitted(self.folder, terms, views.fitted_to, seen)
        with atomic_write(self.folder / "rows.npy") as partial, partial.open("wb") as file:
            np.save(file, rows, allow_pickle=False)
        with atomic_write(self.folder / "cache.json") as partial:
            partial.write_text(json.dumps(stored.to_json(), indent=1) + "\n")
        return stored

    def hold(self) -> None:
        """Keep others from building in the folder, and clear away what a build that was killed half wrote."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            lease.hold(self.folder)
        except UserError as error:
            raise UserError(
                f"{self.key}: another cache-teacher is building in {self.folder}: wait for it, or choose a "
                "new folder"
            ) from error
        remove_partial(self.folder)

    def build(self, stored: TeacherCache) -> None:
        """Write what is missing of a cache that is begun; every rank its share."""
        trainer, teacher = self.views.trainer, self.views.teacher
        if self.views.is_first:
            stored.files.make()
        missing: Any = trainer.strategy.broadcast(self.missing(stored) if self.views.is_first else None)
        share = np.array_split(np.arange(len(missing)), trainer.world_size)[trainer.global_rank]
        self._write(stored, [missing[i] for i in share])
        trainer.strategy.barrier()
        if self.views.is_first:
            stored.check_finished()
            print(
                f"\n  {self.folder} is whole; train with --{teacher.key_of('cache')} {self.folder}\n"
                if not teacher.name
                else f"\n  {self.folder} is whole\n"
            )

    def missing(self, stored: TeacherCache) -> list[Block]:
        """The blocks to be written: they have no record, or the file of their view is not there."""
        files = stored.files
        absent = {view for view in range(stored.layout.views) if not files.view(view).exists()}
        missing = set(files.missing())
        return [block for block in stored.layout.blocks() if block in missing or block.view in absent]

    def lacking(self, stored: TeacherCache) -> int:
        """Bytes of those."""
        return sum(last - first for _, first, last in self.missing(stored)) * stored.layout.dtype.itemsize

    def tell(self, stored: TeacherCache) -> None:
        """Say what is stored, and what is left to do."""
        layout, views = stored.layout, self.views
        rows = self.lacking(stored) // layout.dtype.itemsize
        print(
            f"\n  {views.teacher.title} {views.teacher.backbone.name}: {layout.images:,} images x "
            f"{layout.views} {'view' if layout.views == 1 else 'views'}, {size_text(layout.bytes)} "
            f"({size_text(layout.dtype.itemsize)} a view) in {self.folder}; {free_text(self.folder)} are free"
        )
        if "log_probs" in layout.fields:
            kept = layout.fields["log_probs"].shape[0]
            print(f"  logits           the {kept} likeliest of {stored.classes} classes, stored")
        for reader in views.readers:
            if part := views.parts.get(reader.key):
                field = layout.fields.get(part.name)
                how = "computed while training (at most a tenth of the teacher)"
                how = f"stored, {size_text(field.bytes)} a view" if field else how
                print(f"  {reader.wanted.term:16} {reader.place}: {how}")
        total = len(layout.blocks())
        state = f"  {total - len(self.missing(stored))} of {total} blocks are there"
        if rows:
            seconds = expected_seconds(views, stored, views.fields_in(layout), rows)
            state += f"; the rest takes about {tqdm.format_interval(seconds)}"
        print(f"{state}\n")

    def _write(self, stored: TeacherCache, blocks: Sequence[Block]) -> None:
        layout, fields = stored.layout, self.views.fields_in(stored.layout)
        writer = Writer(stored.files, blocks)
        blank = np.zeros((), layout.dtype)
        for name in layout.fields:
            if blank[name].dtype.kind == "f":
                blank[name] = np.nan  # of an image that cannot be read
        images_of = np.argsort(stored.files.row_of_image())
        title = self.views.teacher.title.capitalize()
        for images, shown, asked in self.views.shown(ViewsOf(blocks, images_of), title):
            rows = np.full(len(asked), blank)
            place = {view: i for i, view in enumerate(asked)}
            places = [place[view] for view in shown]
            answers = self.views.answers(images, fields, bool(stored.logit_fields()))
            for name, values in rows_of(stored, *answers).items():
                rows[name][places] = rounded(name, values, rows[name].dtype, shown)
            writer.write(rows)


def read_cache(views: Views) -> TeacherCache:
    """The cache in the folder, if it is of this run's teacher and views, with what its terms need."""
    stored = TeacherCache.read(views.folder)
    stored.check_identity(views.made_by)
    CachedTeacher(views.teacher, stored, views.readers, views.parts)
    return stored
