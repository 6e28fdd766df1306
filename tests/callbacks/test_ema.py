import os
import re
import subprocess
import sys

import lightning.pytorch as pl
import numpy as np
import pytest
import timm
import torch
from conftest import ROOT, VIT
from safetensors.torch import load_file
from test_fit import Interrupted, assert_same, checkpoint, fit, rows

from distill_dynamics import Backbone, Distiller, UserError
from distill_dynamics.callbacks import EMA
from distill_dynamics.cli.main import main
from distill_dynamics.data import FashionMNISTSample
from distill_dynamics.schedule import Linear

pytestmark = pytest.mark.usefixtures("no_report")

DECAY = 0.8


def ema(**kwargs):
    return {"class_path": "distill_dynamics.callbacks.EMA", "init_args": {"decay": DECAY, **kwargs}}


class KeepEveryStep(pl.Callback):
    """The student's weights before training and after each step of the optimiser."""

    def __init__(self):
        self.weights = []

    def on_train_start(self, trainer, module):
        self.keep(module)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self.keep(module)

    def keep(self, module):
        self.weights.append({k: v.double().clone() for k, v in module.student.state_dict().items()})


def by_hand(weights):
    average = weights[0]
    for current in weights[1:]:
        average = {k: DECAY * v + (1 - DECAY) * current[k] for k, v in average.items()}
    return average


def averaged(callback_state):
    prefix = "module."
    return {k.removeprefix(prefix): v for k, v in callback_state.items() if k.startswith(prefix)}


def trained(tmp_path, student, teacher=None, decay=DECAY, **settings):
    keep, callback = KeepEveryStep(), EMA(decay)
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
    }
    quick = {"max_epochs": 2, "limit_train_batches": 4, "limit_val_batches": 2}
    runner = pl.Trainer(**quiet, **quick, default_root_dir=tmp_path, callbacks=[keep, callback], **settings)
    distiller = Distiller(student, teacher, lr_images=8)
    runner.fit(distiller, datamodule=FashionMNISTSample(batch_size=8, eval_batch_size=100))
    return runner, distiller, keep, callback


@pytest.mark.parametrize(("settings", "steps"), [({}, 8), ({"max_steps": 4}, 4)])
def test_a_decay_may_rise_with_the_progress(tmp_path, settings, steps):
    student = Backbone("deit_tiny_patch16_224", timm_kwargs={**VIT, "depth": 1})
    _, _, keep, callback = trained(tmp_path, student, decay=Linear(0.2, 0.9), **settings)
    assert len(keep.weights) == 1 + steps
    average = keep.weights[0]
    for step, current in enumerate(keep.weights[1:]):  # each in its middle
        decay = 0.2 + 0.7 * (step + 0.5) / steps
        average = {k: decay * v + (1 - decay) * current[k] for k, v in average.items()}
    found = averaged(callback.state_dict())
    for name, value in average.items():
        torch.testing.assert_close(found[name].double(), value, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_average_is_that_of_every_optimisers_step(tmp_path, accumulate):
    teacher = Backbone("cait_xxs24_224", timm_kwargs={**VIT, "embed_dim": 24, "depth": 3})
    student = Backbone("deit_tiny_patch16_224", timm_kwargs={**VIT, "depth": 2})
    runner, distiller, keep, callback = trained(
        tmp_path, student, teacher, accumulate_grad_batches=accumulate
    )
    assert len(keep.weights) == 1 + 8 // accumulate
    state = callback.state_dict()
    assert state["n_averaged"] == len(keep.weights)
    ours, expected = averaged(state), by_hand(keep.weights)
    raw = distiller.student.state_dict()
    assert ours.keys() == expected.keys() == raw.keys()
    for key, value in expected.items():
        torch.testing.assert_close(ours[key].double(), value, rtol=1e-5, atol=1e-7)
    assert not torch.equal(ours["model.head.weight"], raw["model.head.weight"])
    # The student alone: not a tensor of the teacher's is in the copy.
    copied = sum(p.numel() for p in callback.average.parameters())
    assert copied == sum(p.numel() for p in student.parameters())

    plain = timm.create_model("deit_tiny_patch16_224", **VIT, depth=2).eval()
    plain.load_state_dict({k.removeprefix("model."): v for k, v in ours.items()})
    loader = runner.datamodule.val_dataloader()
    batches = [batch for batch, _ in zip(loader, range(2), strict=False)]  # limit_val_batches
    with torch.no_grad():
        hits = torch.cat([plain(x).argmax(1) == y for x, y in batches])
    assert runner.callback_metrics["val/acc1_ema"].item() == pytest.approx(
        hits.float().mean().item() * 100, abs=1e-4
    )


def test_batch_norms_statistics_are_averaged_and_whole_numbers_copied(tmp_path):
    timm_kwargs = {"layers": [1, 1, 1, 1], "channels": [8, 16, 24, 32], "in_chans": 1, "num_classes": 10}
    student = Backbone("resnet18", timm_kwargs=timm_kwargs)
    _, distiller, keep, callback = trained(tmp_path, student)
    ours, expected, raw = (
        averaged(callback.state_dict()),
        by_hand(keep.weights),
        distiller.student.state_dict(),
    )
    means = [key for key in raw if key.endswith("running_mean")]
    counts = [key for key in raw if not raw[key].is_floating_point()]
    assert means
    assert counts
    for key in means:
        torch.testing.assert_close(ours[key].double(), expected[key], rtol=1e-5, atol=1e-7)
        assert not torch.equal(ours[key], raw[key])
    assert all(ours[key] == raw[key] == 8 for key in counts)


def test_an_index_stays_the_index_it_is(tmp_path):
    timm_kwargs = {"img_size": 28, "patch_size": 2, "window_size": 7, "in_chans": 1, "num_classes": 10}
    timm_kwargs |= {"embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2]}
    student = Backbone("swin_tiny_patch4_window7_224", timm_kwargs=timm_kwargs)
    *_, callback = trained(tmp_path, student, decay=0.9)  # 0.9 x 3 + (1 - 0.9) x 3 is less than 3 in float32
    buffers = dict(callback.average.module.named_buffers())
    (name, *_) = [name for name in buffers if name.endswith("relative_position_index")]
    assert torch.equal(buffers[name], dict(student.named_buffers())[name])


def test_a_run_is_the_same_with_it_but_for_one_column(experiment, tmp_path):
    fit(experiment(), "--name", "without")
    fit(experiment(trainer__callbacks=[ema()]), "--name", "with")
    with_, without = (tmp_path / "runs" / name for name in ("with", "without"))
    for name in ("last", "best"):
        for key in ("state_dict", "optimizer_states", "lr_schedulers"):
            assert_same(checkpoint(with_, name)[key], checkpoint(without, name)[key])
    exported = "student/model.safetensors"
    assert_same(load_file(with_ / exported), load_file(without / exported))
    for path in (without / "dynamics").iterdir():
        assert (with_ / "dynamics" / path.name).read_bytes() == path.read_bytes()
    clock = "train/images_per_s"
    plain = [{k: v for k, v in row.items() if k not in (clock, "val/acc1_ema")} for row in rows(with_)]
    assert plain == [{k: v for k, v in row.items() if k != clock} for row in rows(without)]
    assert [bool(row["val/acc1_ema"]) for row in rows(with_)] == [False, True, True]


@pytest.mark.parametrize(("hook", "epoch"), [("on_train_epoch_start", 1), ("on_train_epoch_start", 2)])
def test_a_resumed_average_is_that_of_an_uninterrupted_run(experiment, tmp_path, monkeypatch, hook, epoch):
    config = experiment(trainer__callbacks=[ema()], trainer__max_epochs=3, probe__every_n_epochs=0)
    runs = tmp_path / "runs"
    fit(config, "--name", "whole")
    with monkeypatch.context() as patch:
        original = getattr(Distiller, hook)

        def interrupt(self):
            if self.current_epoch == epoch:
                raise Interrupted
            original(self)

        patch.setattr(Distiller, hook, interrupt)
        with pytest.raises(Interrupted):
            fit(config, "--name", "broken")
    fit(runs / "broken" / "config.yaml", "--ckpt_path", "last")
    whole, broken = checkpoint(runs / "whole"), checkpoint(runs / "broken")
    assert whole["callbacks"]["EMA"]["n_averaged"] == 1 + 3 * 3
    assert_same(whole["callbacks"]["EMA"], broken["callbacks"]["EMA"])
    assert_same(whole["state_dict"], broken["state_dict"])
    assert [row["val/acc1_ema"] for row in rows(runs / "whole")] == [
        row["val/acc1_ema"] for row in rows(runs / "broken")
    ]


def test_validate_measures_a_checkpoints_average(experiment, tmp_path, capsys):
    config = experiment(trainer__callbacks=[ema()], trainer__limit_val_batches=1.0, probe__every_n_epochs=0)
    fit(config, "--name", "r")
    run_dir = tmp_path / "runs" / "r"
    capsys.readouterr()
    main(["validate", "--config", str(run_dir / "config.yaml"), "--ckpt_path", "last"])
    (printed,) = re.findall(r"val/acc1_ema\W+([\d.]+)", capsys.readouterr().out)
    assert float(printed) == pytest.approx(float(rows(run_dir)[-1]["val/acc1_ema"]))


@pytest.mark.slow
def test_two_ranks_have_one_average_and_count_each_image_once(experiment, tmp_path):
    changes = {
        "trainer__limit_val_batches": 1.0,
        "data__init_args__eval_batch_size": 150,
        "probe__every_n_epochs": 0,
    }
    config = experiment(trainer__callbacks=[ema()], trainer__max_epochs=1, **changes)
    command = [sys.executable, "-m", "distill_dynamics", "fit", "--config", config, "--name", "two"]
    subprocess.run(
        [*command, "--trainer.devices", "2", "--trainer.strategy", "ddp"],
        check=True, cwd=ROOT, capture_output=True, timeout=300, env={**os.environ},
    )  # fmt: skip
    run_dir = tmp_path / "runs" / "two"
    student = Backbone("deit_tiny_patch16_224", timm_kwargs={**VIT, "depth": 2}).eval()
    student.load_state_dict(averaged(checkpoint(run_dir)["callbacks"]["EMA"]))
    data = FashionMNISTSample(eval_batch_size=1000)
    data.setup("validate")
    with torch.no_grad():
        hits = torch.cat([student(x).logits.argmax(1) == y for x, y in data.val_dataloader()])
    expected = np.mean(hits.numpy()) * 100
    assert float(rows(run_dir)[-1]["val/acc1_ema"]) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_a_decay_that_is_none_is_one_line(decay):
    with pytest.raises(UserError, match=r"EMA: decay .* not "):
        EMA(decay)
