"""`cache-teacher`: reads a config of `fit`, and shows the views of its training images to its teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jsonargparse.typing import PositiveInt
from lightning.pytorch.cli import LightningArgumentParser

from distill_dynamics.cli.fit import DistillCLI
from distill_dynamics.cli.help import CACHE_TEACHER, NOT_FOR_CACHE_TEACHER, PARSER_KWARGS
from distill_dynamics.data import ImageData
from distill_dynamics.train.cache_teacher import CacheTeacher


class CacheTeacherCLI(DistillCLI):
    """LightningCLI for the command `cache-teacher`."""

    hidden = NOT_FOR_CACHE_TEACHER
    bars_on_terminals_alone = False  # it prints nothing else for hours

    def __init__(self, args: list[str]) -> None:
        super().__init__(
            CacheTeacher,
            args=["predict", *args],  # Lightning's command that only runs a model
            parser_kwargs={**PARSER_KWARGS, "predict": CACHE_TEACHER},
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Those of `fit`, so that its configs can be read, and its own."""
        super().add_arguments_to_parser(parser)
        parser.add_argument(
            "--out",
            type=str | None,
            help="folder of the cache; each of model.teachers has its own, which its `cache` names",
        )
        parser.add_argument(
            "--top_k",
            type=PositiveInt,
            default=100,
            help="classes kept of each answer",
        )
        parser.add_argument(
            "--verify",
            action="store_true",
            help="write nothing: read the cache that is there against its checksums, and compute some views "
            "again",
        )

    def before_instantiate_classes(self) -> None:
        """Let the config that is to train with the cache build it."""
        super().before_instantiate_classes()
        self.config.predict.model.teacher_cache = None
        if not self.config.predict.verify:
            self.when_stopped = "stopped: what is written stays, and the same command goes on from there"

    def predict(self, model: Any, datamodule: ImageData, **kwargs: Any) -> None:
        """Build or verify."""
        out = self.config.predict.out
        model.folder, model.top_k = out and Path(out).expanduser(), self.config.predict.top_k
        model.verifies = self.config.predict.verify
        bar: Any = self.trainer.progress_bar_callback
        model.shows_progress = bar is not None
        if bar is not None:
            bar.disable()  # of Lightning's batches, which these are not
        self.trainer.predict(model, datamodule=datamodule, return_predictions=False)
