import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import program
from lightning.pytorch import Callback
from test_fit import assert_same, fit, rows
from test_global_batch import DDP, SPECTRAL

from distill_dynamics import Backbone
from distill_dynamics.data import FashionMNISTSample
from distill_dynamics.dynamics import Profile

STEPS, BATCH = 20, 16
PROJECTOR = {"loss": {"class_path": "distill_dynamics.losses.ProjectorKD"}, "weight": 0.2, "last": 1}


class Steps(Callback):
    """Leaves in `folder/WORLD_RANK.pt` each step's loss and the gradients that the optimiser was given."""

    def __init__(self, folder: str):
        self.folder = folder
        self.losses, self.gradients = [], []

    def on_before_optimizer_step(self, trainer, module, optimizer):
        named = {"projector": module.terms, "head": module.student.model.head}
        self.gradients.append(
            {name: [p.grad.clone() for p in part.parameters()] for name, part in named.items()}
        )

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.losses.append(outputs["loss"].detach())

    def on_train_end(self, trainer, module):
        path = Path(self.folder, f"{trainer.world_size}_{trainer.global_rank}.pt")
        torch.save({"losses": torch.stack(self.losses), "gradients": self.gradients}, path)


def on_ranks(config, world, name):
    command = program("fit", "--config", config, "--name", name, "--trainer.devices", world)
    done = subprocess.run(**command, capture_output=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_two_ranks_take_the_steps_of_one(experiment, tmp_path):
    def config(name, **changes):
        return experiment(
            name,
            model__terms={"spectral": SPECTRAL, "projector": PROJECTOR},
            # Dropout is keyed by rank, so with it two ranks are another draw than one.
            model__student__timm_kwargs__proj_drop_rate=0.0,
            model__student__timm_kwargs__drop_path_rate=0.0,
            model__optimizer={"class_path": "torch.optim.SGD", "init_args": {"lr": 0.2, "momentum": 0.9}},
            model__scheduler=None,
            data__init_args__global_batch=BATCH,
            trainer__limit_train_batches=STEPS,
            trainer__max_epochs=1,
            trainer__callbacks=[
                {"class_path": "test_ranks_agree.Steps", "init_args": {"folder": str(tmp_path)}}
            ],
            probe__n_images=7,
            **changes,
        )

    fit(config("one", data__init_args__batch_size=BATCH), "--name", "one")
    on_ranks(config("two", data__init_args__batch_size=BATCH // 2, trainer__strategy=DDP), 2, "two")

    one, *two = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("1_0", "2_0", "2_1"))
    assert len(one["losses"]) == STEPS
    assert one["losses"][0] - one["losses"][-1] > 0.1  # it has learned: equal losses say something
    both = (two[0]["losses"] + two[1]["losses"]) / 2
    torch.testing.assert_close(both, one["losses"], rtol=1e-6, atol=0)
    assert not torch.equal(two[0]["losses"], two[1]["losses"])  # each has seen images of its own
    assert_same(two[0]["gradients"], two[1]["gradients"])
    torch.testing.assert_close(two[0]["gradients"], one["gradients"], rtol=1e-5, atol=1e-6)
    assert all(step["projector"][0].abs().max() > 1e-2 for step in one["gradients"])

    runs = tmp_path / "runs"
    a, b = (rows(runs / run)[-1] for run in ("one", "two"))
    for name in (
        "train/loss",
        "train/loss_ce",
        "train/loss_kd",
        "train/loss_spectral",
        "train/loss_projector",
    ):
        assert float(b[name]) == pytest.approx(float(a[name]), rel=1e-5)
    for name in ("teacher", "student_epoch_0000", "student_epoch_0001"):
        a, b = (Profile.load(runs / run / "dynamics" / f"{name}.npz") for run in ("one", "two"))
        assert a.probe_id == b.probe_id
        np.testing.assert_array_equal(a.probe_indices, b.probe_indices)
        np.testing.assert_allclose(b.magnitude_images, a.magnitude_images, rtol=1e-5)
        np.testing.assert_allclose(b.value_range, a.value_range, rtol=1e-5)
        # A value near the edge of a bin may lie on its other side after another rounding.
        np.testing.assert_allclose(b.entropy_images, a.entropy_images, atol=0.05)
        for x, y in zip(a.spectrum, b.spectrum, strict=True):
            np.testing.assert_allclose(y, x, rtol=1e-5, atol=1e-8)


@pytest.mark.slow
def test_three_ranks_validate_every_image_once(experiment, tmp_path):
    config = experiment(trainer__limit_train_batches=2, trainer__limit_val_batches=1.0, trainer__max_epochs=1)
    on_ranks(config, 3, "three")
    run_dir = tmp_path / "runs" / "three"
    data = FashionMNISTSample(eval_batch_size=1000)
    data.setup("validate")
    ((images, targets),) = data.val_dataloader()
    assert len(images) % 3 != 0  # the ranks' shares are unequal
    student = Backbone("deit_tiny_patch16_224", checkpoint=run_dir / "checkpoints" / "last.ckpt").eval()
    with torch.no_grad():
        logits = student(images).logits
    hits = logits.topk(5).indices == targets[:, None]
    row = rows(run_dir)[-1]
    # One image counted twice would be 0.01 % or more.
    assert float(row["val/acc1"]) == pytest.approx(hits[:, 0].float().mean().item() * 100, abs=1e-4)
    assert float(row["val/acc5"]) == pytest.approx(hits.any(dim=1).float().mean().item() * 100, abs=1e-4)
    assert float(row["val/loss"]) == pytest.approx(F.cross_entropy(logits, targets).item(), rel=1e-5)
