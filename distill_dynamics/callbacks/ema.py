"""An exponential moving average of the student's weights, evaluated beside the raw ones."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from distill_dynamics.errors import UserError
from distill_dynamics.models.features import LOGITS, POOLED, read
from distill_dynamics.schedule import Schedule, sampled
from distill_dynamics.train.distiller import Distiller
from distill_dynamics.train.metrics import accuracies, datamodule
from distill_dynamics.train.progress import progress_at
from distill_dynamics.train.quality import FeatureQuality, measures_quality, quality_of


class EMA(Callback):
    """Averages the student's weights over the optimiser's steps and logs `val/acc1_ema`.

    Of a student without classes it is `val/knn1_ema`, `val/linear1_ema` and `val/effective_rank_ema`.

    After each step t, average ← decay · average + (1 - decay) · weights, from the weights before the first
    step on; buffers likewise (batch norm's statistics), but for whole numbers, which are copied. With
    accumulated batches a step is the optimiser's, not the batch's.

    Only the average's accuracy is new: training, probes, `best.ckpt` and the exported student are those of
    the raw weights, which the checkpoint's `state_dict` holds. The averaged ones are in the checkpoint under
    `callbacks`, `EMA`, with the names of `Distiller.student` after `module.`; a resumed run goes on from
    them, and `validate --ckpt_path` measures them again. A run that is resumed without them starts a new
    average there.

    Cost: a second copy of the student's weights (the teacher has none), a pass over them each step, and in
    validation a second forward pass of the student over each batch, which is read and decoded once.

    In a config, under `trainer`: `callbacks: [{class_path: distill_dynamics.callbacks.EMA}]`.

    Args:
        decay: share of the average that a step leaves. 0.99996 is what DeiT trains with (its `main.py`,
            --model-ema-decay): a memory of about 1 / (1 - decay) = 25,000 steps, 40 epochs of ImageNet at
            2,048 images a step. A short run needs a smaller one, or a schedule of the progress.

    Raises:
        UserError: a decay outside [0, 1).
    """

    def __init__(self, decay: float | Schedule = 0.99996) -> None:
        for value in sampled(decay):
            if not 0 <= value < 1:
                raise UserError(f"EMA: decay is a share, 0 or more and below 1, not {value}")
        self.decay = decay
        self._decay_now = 0.0  # of the latest step
        self.average: AveragedModel | None = None

    def setup(self, trainer: Trainer, pl_module: Distiller, stage: str) -> None:
        """Copy the student, once; a checkpoint's average is loaded into the copy after this."""
        if self.average is None or stage == "fit":
            self.average = AveragedModel(pl_module.student)
            self.average.requires_grad_(False).eval()
            self._accuracy = accuracies(pl_module.student.num_classes)["acc1"]
            self._quality = FeatureQuality()

    @torch.no_grad()
    def _take_in(self, student: nn.Module) -> None:
        # Not AveragedModel.update_parameters: it has a GPU wait for the count of steps, and blends whole
        # numbers, whose fraction it cuts off: at 0.9 an index of 3 becomes 2.
        average = self._average()
        first = average.n_averaged == 0
        blended: tuple[list[Tensor], list[Tensor]] = [], []
        for mean, value in zip(_state(average.module), _state(student), strict=True):
            if first or not mean.is_floating_point():
                mean.copy_(value)
            else:
                blended[0].append(mean)
                blended[1].append(value)
        if blended[0]:
            torch._foreach_lerp_(*blended, 1 - self._decay_now)
        average.n_averaged += 1

    def on_train_start(self, trainer: Trainer, pl_module: Distiller) -> None:
        """Begin with the weights as they are, unless a checkpoint brought an average."""
        self._step = trainer.global_step
        self._average().module.to(pl_module.device)
        if self._average().n_averaged == 0:
            self._take_in(pl_module.student)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: Distiller, batch: Any, batch_idx: int
    ) -> None:
        """Look up the decay of the step that begins."""
        self._decay_now = self.decay(progress_at(trainer, batch_idx)) if callable(self.decay) else self.decay

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Distiller, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take the new weights in, if the optimiser has made a step."""
        if trainer.global_step != self._step:
            self._step = trainer.global_step
            self._take_in(pl_module.student)

    def on_validation_start(self, trainer: Trainer, pl_module: Distiller) -> None:
        """Have the average where the student is."""
        self._average().module.to(pl_module.device)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: Distiller,
        outputs: Any,
        batch: tuple[Any, ...],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Measure the average on images that the raw weights have just been measured on."""
        of_classes = pl_module.student.num_classes > 0
        if not (of_classes or measures_quality(datamodule(trainer))) or not self._is_measured(trainer):
            return
        images, targets, *known = batch
        with trainer.precision_plugin.forward_context():
            student: Any = self._average().module
            what = LOGITS if of_classes else POOLED
            answer = read(student, pl_module.for_student(images), {what})[what]
        if of_classes:
            self._accuracy.to(pl_module.device).update(answer, targets)
        else:
            self._quality.to(pl_module.device).update(answer, targets, known[0]["index"])

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: Distiller) -> None:
        """Publish `val/acc1_ema`, of all ranks' images; in `fit` the epoch's row takes it up."""
        if not self._is_measured(trainer):
            return
        found: dict[str, Any] = {}
        if pl_module.student.num_classes:
            found = {"acc1": self._accuracy.compute()}
            self._accuracy.reset()
        elif measures_quality(datamodule(trainer)):
            found = quality_of(self._quality, trainer, "the averaged student")
        for name, value in found.items():
            pl_module.log(f"val/{name}_ema", value, logger=trainer.state.fn != "fit")

    def _is_measured(self, trainer: Trainer) -> bool:
        return bool(self._average().n_averaged > 0) and not trainer.sanity_checking

    def state_dict(self) -> dict[str, Any]:
        """The averaged weights and how many steps are in them."""
        return {} if self.average is None else self.average.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the average from a checkpoint."""
        if self.average is not None:
            self.average.load_state_dict(state_dict)

    def _average(self) -> AveragedModel:
        assert self.average is not None  # made by setup
        return self.average


def _state(module: nn.Module) -> Iterator[Tensor]:
    """What is averaged; the count of steps is none of it, and stays on the CPU."""
    return chain(module.parameters(), module.buffers())
