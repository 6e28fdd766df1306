"""`cache-teacher`: reads a config of `fit`, and shows the views of its training images to its teacher."""

from __future__ import annotations

from argparse import SUPPRESS
from pathlib import Path
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser

from distill_dynamics.cli.fit import DistillCLI
from distill_dynamics.cli.help import CACHE_TEACHER, NOT_FOR_CACHE_TEACHER, PARSER_KWARGS
from distill_dynamics.data import ImageData
from distill_dynamics.errors import UserError
from distill_dynamics.train.cache_teacher import CacheTeacher


class CacheTeacherCLI(DistillCLI):
    """LightningCLI for the command `cache-teacher`."""

    def __init__(self, args: list[str]) -> None:
        super().__init__(
            CacheTeacher,
            args=["predict", *args],  # Lightning's command that only runs a model
            parser_kwargs={**PARSER_KWARGS, "predict": CACHE_TEACHER},
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Those of `fit`, so that its configs can be read, and its own."""
        super().add_arguments_to_parser(parser)
        parser.add_argument("--out", type=str, required=True, help="folder of the cache")
        parser.add_argument(
            "--top_k", type=int, default=100, help="classes kept of each answer; all where there are no more"
        )
        parser.add_argument(
            "--verify",
            action="store_true",
            help="write nothing: read the cache that is there against its checksums, and compute some views "
            "again",
        )

    def setup_parser(self, *args: Any) -> None:
        """Show only options that are of use."""
        super().setup_parser(*args)
        for action in self._subcommand_parsers["predict"]._actions:
            if action.dest in NOT_FOR_CACHE_TEACHER:
                action.help = SUPPRESS

    def before_instantiate_classes(self) -> None:
        """Let the config that is to train with the cache build it."""
        super().before_instantiate_classes()
        self.config.predict.model.teacher_cache = None

    def predict(self, model: Any, datamodule: ImageData, **kwargs: Any) -> None:
        """Build or verify."""
        model.folder, model.top_k = Path(self.config.predict.out).expanduser(), self.config.predict.top_k
        model.verifies = self.config.predict.verify
        if model.top_k < 1:
            raise UserError(f"--top_k: {model.top_k} must be at least 1")
        bar: Any = self.trainer.progress_bar_callback
        model.shows_progress = bar is not None
        if bar is not None:
            bar.disable()  # of Lightning's batches, which these are not
        self.trainer.predict(model, datamodule=datamodule, return_predictions=False)
