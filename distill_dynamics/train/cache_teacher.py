"""What `cache-teacher` does on the devices of a config, which Lightning's `predict` starts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distill_dynamics.errors import UserError
from distill_dynamics.teacher_cache.build import CacheBuilder
from distill_dynamics.teacher_cache.cache import TeacherCache
from distill_dynamics.teacher_cache.fields import check_shapes
from distill_dynamics.teacher_cache.fitted import load_fitted
from distill_dynamics.teacher_cache.plan import check_room, plan
from distill_dynamics.teacher_cache.verify import verify
from distill_dynamics.teacher_cache.views import Views
from distill_dynamics.train.cached import made_by, readers_of
from distill_dynamics.train.distiller import Distiller
from distill_dynamics.train.fit_losses import fit_losses
from distill_dynamics.train.metrics import datamodule, measure
from distill_dynamics.train.precision_error import precision_error
from distill_dynamics.train.quality import measures_quality
from distill_dynamics.train.reference_images import depend_on, drawn_once


class CacheTeacher(Distiller):
    """A Distiller whose teachers' answers are stored, or verified, and which trains nothing."""

    folder: Path | None = None
    """Of the cache of `model.teacher`; set before. Those with names have their own (`Teacher.cache`)."""
    top_k: int = 100
    verifies = False
    shows_progress = True

    def setup(self, stage: str) -> None:
        """Find out what cannot work before anything is done."""
        self.folders = self._folders()
        for name in self.folders:
            if (teacher := self.teachers[name]).sharded:
                raise UserError(
                    f"cache-teacher: a sharded teacher cannot be cached; set {teacher.key_of('shard')}: false"
                )
        self.data = datamodule(self.trainer)
        self.data.global_batch = None  # whose share a device takes matters to training alone
        self.data.setup("fit")
        self.made_by = {name: made_by(self, self.teachers[name]) for name in self.folders}
        if self.data.views is None:
            raise UserError(
                "cache-teacher: give data.init_args.views, how many augmented views of each image there are "
                "(training goes through them in turn)"
            )
        super().setup(stage)
        self.data.predict_dataloader = lambda: range(1)

    def _folders(self) -> dict[str, Path]:
        """Of each cache, by its teacher's name."""
        if not self.teachers:
            raise UserError("cache-teacher: model.teacher is missing, so there is nothing to cache")
        named = {n: Path(of.cache).expanduser() for n, of in self.teachers.items() if n and of.cache}
        if self.folder is not None and "" not in self.teachers:
            key = next(iter(self.teachers.values())).key_of("cache")
            raise UserError(f"--out is the folder of the one model.teacher; here set {key}, and so on")
        if self.folder is None and not named:
            first = next(iter(self.teachers.values()))
            key = first.key_of("cache") if first.name else "--out"
            raise UserError(f"cache-teacher: give {key}, the folder of the cache")
        return ({} if self.folder is None else {"": self.folder}) | named

    def predict_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        """All the work: it is Lightning's only batch."""
        trainer = self.trainer
        broadcast: Any = trainer.strategy.broadcast
        builders = [CacheBuilder(self._views(name), self.top_k) for name in self.folders]
        if self.verifies:
            for builder in builders:
                verify(builder.views)
            return
        # The first rank alone looks at the folders and decides; what it decides is told to the others.
        planned = broadcast(self._planned(builders) if trainer.is_global_zero else None)
        for builder, stored in zip(builders, planned, strict=True):
            self._build(builder, stored)

    def _views(self, name: str) -> Views:
        """A teacher beside the data, once its terms' losses have fitted what they fit."""
        folder, terms = self.folders[name], self.terms_of(name)
        begun = (folder / "cache.json").exists()
        if begun:
            load_fitted(folder, terms, depend_on(self.data))
        elif not self.verifies:
            fit_losses(self, drawn_once(self.data), terms)
        readers, parts = readers_of(self, name)
        if begun:
            check_shapes(folder, readers, parts, TeacherCache.read(folder).layout.fields)
        return Views(
            self.teachers[name],
            readers,
            parts,
            data=self.data,
            trainer=self.trainer,
            made_by=self.made_by[name],
            fitted_to=depend_on(self.data),
            folder=folder,
            shows_progress=self.shows_progress,
        )

    def _planned(self, builders: Sequence[CacheBuilder]) -> list[TeacherCache]:
        """What is to be in every folder; says how much that is before any is written."""
        planned = [builder.found() or plan(builder.views, self.top_k) for builder in builders]
        pairs = list(zip(builders, planned, strict=True))
        cut = any(stored.logit_fields() for stored in planned)
        rooms = [(builder.key, builder.folder, builder.lacking(stored)) for builder, stored in pairs]
        check_room(rooms, cut)
        for builder, stored in pairs:
            teacher = builder.views.teacher
            builder.tell(stored)
            if line := precision_error(teacher, self.trainer, self.teacher_reads(teacher.name), self.top_k):
                print(f"  {teacher.title} in {line}\n")
        return planned

    def _build(self, builder: CacheBuilder, planned: TeacherCache) -> None:
        trainer, views = self.trainer, builder.views
        broadcast: Any = trainer.strategy.broadcast
        if trainer.is_global_zero:
            builder.hold()
        stored = broadcast(builder.found() if trainer.is_global_zero else None)
        if stored is None:
            measured = views.reads_logits or measures_quality(self.data)
            accuracy = measure(views.teacher, trainer, self.student.num_classes) if measured else {}
            terms = self.terms_of(views.teacher.name)
            stored = broadcast(builder.begin(planned, accuracy, terms) if trainer.is_global_zero else None)
        builder.build(stored)
