"""Trainings as the command line would have them, without its parser: a GPU machine may lack jsonargparse."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from here import Here
from lightning.pytorch import Callback, LightningDataModule, Trainer, seed_everything

from distill_dynamics import Backbone, Distiller, Term
from distill_dynamics.data import FashionMNISTSample
from distill_dynamics.losses import ProjectorKD, SpectralKD
from distill_dynamics.train.checkpoints import checkpoint_callbacks
from distill_dynamics.train.run_logger import RunLogger

VIT = {"img_size": 28, "patch_size": 7, "in_chans": 1, "num_classes": 10}
BOTH_LOSSES = {
    "spectral": Term(lambda student, teacher: SpectralKD(student, teacher), weight=0.2, first=1, last=1),
    "projector": Term(lambda student, teacher: ProjectorKD(student, teacher), weight=0.2, last=1),
}


def quickstart(terms: dict[str, Term | None] = BOTH_LOSSES, **settings: Any) -> Distiller:
    """The packaged teacher and a student of 12 blocks of 32 channels, as in configs/quickstart.yaml."""
    seed_everything(0, verbose=False)
    student = Backbone(
        "deit_tiny_patch16_224", timm_kwargs={**VIT, "embed_dim": 32, "depth": 12, "num_heads": 2}
    )
    teacher = Backbone("cait_xxs24_224", checkpoint="packaged:cait_fashion_mnist")
    distiller = Distiller(student, teacher, dict(terms), **settings)
    distiller.teacher.accuracy = {"acc1": 0.0}  # as if known: to measure it takes longer than the steps
    return distiller


def sample(**settings: Any) -> FashionMNISTSample:
    """The images that come with the package."""
    return FashionMNISTSample(**{"batch_size": 128, "eval_batch_size": 500, "crop_padding": 1, **settings})


def trainer(
    here: Here, callbacks: Sequence[Callback] = (), run_dir: Path | None = None, **settings: Any
) -> Trainer:
    """One device; with a run's directory also metrics.csv and checkpoints."""
    kept = [] if run_dir is None else checkpoint_callbacks(run_dir, 1)
    return Trainer(
        **{
            "accelerator": here.device,
            "devices": 1,
            "callbacks": [*callbacks, *kept],
            "default_root_dir": run_dir or Path(tempfile.gettempdir()),
            "logger": False if run_dir is None else [RunLogger(run_dir)],
            "enable_checkpointing": run_dir is not None,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "use_distributed_sampler": False,
            **settings,
        }
    )


class AtStep(Callback):
    """Calls a function before each batch, with how many there were since training began."""

    def __init__(self, call: Callable[[int], None]) -> None:
        self.call, self.steps = call, 0

    def on_train_batch_start(self, *args: Any) -> None:
        self.call(self.steps)
        self.steps += 1


class Losses(Callback):
    """The loss of each step, kept where it was computed: to look at it would be to wait."""

    def __init__(self) -> None:
        self.kept: list[torch.Tensor] = []

    def on_before_backward(self, trainer: Trainer, pl_module: Any, loss: torch.Tensor) -> None:
        self.kept.append(pl_module.latest.values[0].double().clone())

    def values(self) -> list[float]:
        return torch.stack(self.kept).tolist()


def fit(
    here: Here, distiller: Distiller, data: LightningDataModule, *callbacks: Callback, **settings: Any
) -> list[float]:
    """Train, and give the loss of each step."""
    losses = Losses()
    trainer(here, [*callbacks, losses], **settings).fit(distiller, datamodule=data)
    return losses.values()
