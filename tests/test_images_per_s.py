"""`train/images_per_s`: the images of all ranks by the time of the steps, on a clock that is held."""

import time

import lightning.pytorch as pl
import pytest
from conftest import VIT

from distill_dynamics import Backbone, Distiller
from distill_dynamics.data import FashionMNISTSample


class Clock(pl.Callback):
    """Stands still but for 5 s a step, an hour a validation and one at the epoch's end, with then `ranks`."""

    def __init__(self, monkeypatch, ranks):
        self.now, self.monkeypatch, self.ranks = 100.0, monkeypatch, ranks
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def on_train_batch_end(self, *args):
        self.now += 5

    def on_validation_end(self, *args):
        self.now += 3600

    def on_train_epoch_end(self, *args):
        self.now += 3600
        self.monkeypatch.setattr(pl.Trainer, "world_size", self.ranks)


@pytest.mark.parametrize("ranks", [1, 4])
@pytest.mark.parametrize("validated", [True, False])
def test_images_of_all_ranks_by_the_time_of_their_steps(tmp_path, monkeypatch, ranks, validated):
    distiller = Distiller(student=Backbone("deit_tiny_patch16_224", timm_kwargs={**VIT, "depth": 1}))
    rows = []
    place = "distill_dynamics.callbacks.epoch_rows.log_row"
    monkeypatch.setattr(place, lambda loggers, epoch, row, step: rows.append((epoch, row)))
    trainer = pl.Trainer(
        max_epochs=1,
        limit_train_batches=3,
        limit_val_batches=1 if validated else 0,
        num_sanity_val_steps=0,
        callbacks=[Clock(monkeypatch, ranks)],
        default_root_dir=tmp_path,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(distiller, datamodule=FashionMNISTSample(batch_size=8, eval_batch_size=100))
    speeds = [row["train/images_per_s"] for epoch, row in rows if epoch == 1]
    assert speeds == [pytest.approx(ranks * 3 * 8 / (3 * 5))]
