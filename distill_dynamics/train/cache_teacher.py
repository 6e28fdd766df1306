"""What `cache-teacher` does on the devices of a config, which Lightning's `predict` starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distill_dynamics.errors import UserError
from distill_dynamics.teacher_cache.build import CacheBuilder
from distill_dynamics.teacher_cache.fitted import load_fitted
from distill_dynamics.teacher_cache.plan import plan
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
    """A Distiller whose teacher's answers are stored, or verified, and which trains nothing."""

    folder: Path
    """Of the cache; set before."""
    top_k: int = 100
    verifies = False
    shows_progress = True

    def setup(self, stage: str) -> None:
        """Find out what cannot work before anything is done."""
        if self.teacher is None:
            raise UserError("cache-teacher: model.teacher is missing, so there is nothing to cache")
        if self.teacher.sharded:
            raise UserError(
                "cache-teacher: a sharded teacher cannot be cached; set model.shard_teacher: false"
            )
        self.data = datamodule(self.trainer)
        self.data.global_batch = None  # whose share a device takes matters to training alone
        self.data.setup("fit")
        self.made_by = made_by(self, self.teacher)
        if self.data.views is None:
            raise UserError(
                "cache-teacher: give data.init_args.views, how many augmented views of each image there are "
                "(training goes through them in turn)"
            )
        super().setup(stage)
        self.data.predict_dataloader = lambda: range(1)

    def predict_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        """All the work: it is Lightning's only batch."""
        assert self.teacher is not None
        trainer = self.trainer
        broadcast: Any = trainer.strategy.broadcast
        if (self.folder / "cache.json").exists():
            load_fitted(self.folder, self.terms, depend_on(self.data))
        elif not self.verifies:
            fit_losses(self, drawn_once(self.data))
        views = Views(
            self.teacher,
            *readers_of(self),
            data=self.data,
            trainer=trainer,
            made_by=self.made_by,
            fitted_to=depend_on(self.data),
            folder=self.folder,
            shows_progress=self.shows_progress,
        )
        if self.verifies:
            verify(views)
            return
        builder = CacheBuilder(views, self.top_k)
        reads = self.teacher_reads()
        if trainer.is_global_zero and (line := precision_error(self.teacher, trainer, reads, self.top_k)):
            print(f"\n  teacher in {line}")
        # The first rank alone looks at the folder and decides; what it decides is told to the others.
        stored = broadcast(builder.begun() if trainer.is_global_zero else None)
        if stored is None:
            planned: Any = plan(views, self.top_k) if trainer.is_global_zero else None
            measured = views.reads_logits or measures_quality(self.data)
            accuracy = measure(self.teacher, trainer, self.student.num_classes) if measured else {}
            stored = broadcast(
                builder.begin(planned, accuracy, self.terms) if trainer.is_global_zero else None
            )
        builder.build(stored)
