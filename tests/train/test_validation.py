import lightning.pytorch as pl
import pytest
import torch
from conftest import VIT
from torch.utils._python_dispatch import TorchDispatchMode

from distill_dynamics import Backbone, Distiller
from distill_dynamics.data import FashionMNISTSample


class Waits(TorchDispatchMode):
    """Operations for whose result Python waits."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in ("_local_scalar_dense", "nonzero", "equal"):
            self.seen.append(func)
        return func(*args, **(kwargs or {}))


def student():
    return Backbone("deit_tiny_patch16_224", timm_kwargs={**VIT, "depth": 1})


def test_validation_waits_for_no_number(monkeypatch):
    distiller = Distiller(student()).eval()
    distiller.trainer = pl.Trainer(accelerator="cpu", logger=False, barebones=True)
    # torchmetrics' one_hot looks at the targets, on a CPU alone.
    monkeypatch.setattr(distiller.val_metrics, "update", lambda *_: None)
    batch = torch.rand(4, 1, 28, 28), torch.tensor([1, 2, -100, 3])
    with Waits() as waits, torch.no_grad():
        distiller.validation_step(batch, 0)
    assert not waits.seen
    logits = distiller.student(batch[0]).logits
    expected = torch.nn.functional.cross_entropy(logits[[0, 1, 3]], batch[1][[0, 1, 3]])
    torch.testing.assert_close(distiller.val_loss.compute(), expected)


def test_a_loss_that_is_no_number_is_told_and_not_left_out(tmp_path):
    broken = student()
    with torch.no_grad():
        broken.model.head.bias[0] = torch.nan
    quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    trainer = pl.Trainer(accelerator="cpu", limit_val_batches=2, default_root_dir=tmp_path, **quiet)
    data = FashionMNISTSample(batch_size=8, eval_batch_size=8)
    with pytest.warns(UserWarning, match="val/loss is nan: the student's logits are not all finite"):
        (row,) = trainer.validate(Distiller(broken), datamodule=data, verbose=False)
    assert row["val/loss"] != row["val/loss"]
