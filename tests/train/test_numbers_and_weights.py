"""A number is logged, saved and compared with the weights that it was measured on."""

import csv
import types
from typing import ClassVar

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import VIT
from torch import nn

from distill_dynamics import Backbone, Distiller, Term
from distill_dynamics.callbacks.epoch_rows import EpochRows
from distill_dynamics.cli.main import main
from distill_dynamics.data import FashionMNISTSample
from distill_dynamics.losses.logits import soft_kd_top, top_classes
from distill_dynamics.teacher_cache.cache import TeacherCache
from distill_dynamics.teacher_cache.layout import Field, Layout
from distill_dynamics.train.optimise import Optimisation
from distill_dynamics.train.step import Step


def student(**kwargs):
    return Backbone("deit_tiny_patch16_224", timm_kwargs={**VIT, "depth": 2, **kwargs})


class Apart(nn.Module):
    """Loss whose value tells which pair it is of."""

    count = 0

    def __init__(self, student_channels, teacher_channels):
        super().__init__()
        Apart.count += 1
        self.value = float(Apart.count)

    def forward(self, student_map, teacher_map):
        return student_map.mean() * 0 + self.value


def standing(distiller, epoch, rank=0, world=1):
    """The module as if it stood there in a training; what a stand-in for the Trainer can say."""
    distiller._seed = 3
    trainer = types.SimpleNamespace(
        current_epoch=epoch, global_rank=rank, world_size=world, global_step=0, max_epochs=5, max_steps=-1,
        num_training_batches=10, accumulate_grad_batches=1,
        strategy=types.SimpleNamespace(root_device=torch.device("cpu")),
    )  # fmt: skip
    object.__setattr__(distiller, "_trainer", trainer)


def at(distiller, epoch, batch, rank=0, world=1):
    standing(distiller, epoch, rank, world)
    with distiller._draws(batch):
        return torch.rand(4)


def test_dropout_differs_from_step_to_step_epoch_to_epoch_and_rank_to_rank():
    distiller = Distiller(student())
    torch.manual_seed(0)
    places = [(0, 0, 0), (0, 1, 0), (1, 0, 0), (0, 0, 1), (1, 1, 1)]
    drawn = [at(distiller, *place) for place in places]
    again = [at(distiller, *place) for place in places]
    after = torch.rand(1)
    assert all(torch.equal(a, b) for a, b in zip(drawn, again, strict=True))
    assert not any(torch.equal(a, b) for i, a in enumerate(drawn) for b in drawn[:i])
    torch.manual_seed(0)
    assert torch.equal(after, torch.rand(1))  # the global state is as it was


def test_a_second_terms_weight_counts():
    terms = {
        "a": Term(Apart, weight=0.5, pairs=[(1, 1)]),
        "b": Term(Apart, weight=0.25, pairs=[(1, 1), (2, 2)]),
    }
    Apart.count = 0
    distiller = Distiller(student(), student(), terms, alpha=0.0)
    images, targets = torch.randn(4, 1, 28, 28), torch.arange(4)
    standing(distiller, 0)
    total = distiller.training_step((images, targets), 0)
    logits = distiller.student(images).logits
    wanted = F.cross_entropy(logits, targets, label_smoothing=0.1) + 0.5 * 1 + 0.25 * (2 + 3) / 2
    assert total.item() == pytest.approx(wanted.item(), rel=1e-6)


def test_a_stored_top_k_and_the_rest_sum_to_one():
    logits = torch.tensor([[9.0, 1, 0, -1, 2, 0.5, 0, 0, -3, 1], [4.0, 3.9, 3.8, 0, 0, 0, 0, 0, 0, 0]])
    top = top_classes(logits, 3, 1.0)
    fields = {
        "log_probs": Field((3,), "float16"),
        "classes": Field((3,), "uint16"),
        "rest": Field((), "float32"),
    }
    cache = TeacherCache(None, {}, Layout(2, 1, 2, fields), {}, 10, 1.0, 0, {}, {})
    row = {"log_probs": top.log_probs.half(), "classes": top.classes, "rest": top.rest}
    stored = cache.top(row)
    sums = stored.log_probs.exp().sum(dim=1) + stored.rest
    torch.testing.assert_close(sums, torch.ones(2), rtol=0, atol=1e-6)
    mine = torch.randn(2, 10, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        soft_kd_top(mine, stored, 1.0), soft_kd_top(mine, top, 1.0), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("world", [1, 4])
def test_the_rate_is_scaled_by_the_global_batch_once(world):
    trainer = types.SimpleNamespace(
        world_size=world, accumulate_grad_batches=2, precision=None, precision_plugin=None, max_epochs=3,
        max_steps=-1, datamodule=types.SimpleNamespace(batch_size=8),
    )  # fmt: skip
    distiller = Distiller(student(), scheduler=None, lr_images=64)
    object.__setattr__(distiller, "_trainer", trainer)
    optimizer = distiller.configure_optimizers()
    assert isinstance(distiller.optimisation, Optimisation)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 * 8 * 2 * world / 64)


def test_an_epochs_row_is_of_all_ranks(monkeypatch):
    logged, callback = [], EpochRows()
    reduced = lambda tensor, reduce_op: tensor + 1 if reduce_op == "mean" else tensor  # noqa: E731
    trainer = types.SimpleNamespace(
        world_size=4, strategy=types.SimpleNamespace(reduce=reduced), current_epoch=0, global_step=5,
        optimizers=[types.SimpleNamespace(param_groups=[{"lr": 0.1}])], callback_metrics={}, loggers=[],
        callbacks=[],
    )  # fmt: skip
    module = types.SimpleNamespace(
        optimisation=types.SimpleNamespace(end_epoch=lambda metrics: None), log=lambda *args, **kwargs: None
    )
    place = "distill_dynamics.callbacks.epoch_rows"
    monkeypatch.setattr(f"{place}.log_row", lambda loggers, epoch, row, step: logged.append((epoch, row)))
    for clock, values in ((10.0, [1.0, 0.5]), (11.0, [3.0, 1.5])):
        monkeypatch.setattr(f"{place}.time.perf_counter", lambda clock=clock: clock)
        if clock == 10.0:
            callback.on_train_epoch_start(trainer, module)
        module.latest = Step(["ce"], torch.tensor(values), {"ce": values[1]}, 15, 0)
        callback.on_before_backward(trainer, module, None)
    monkeypatch.setattr(f"{place}.time.perf_counter", lambda: 13.0)
    callback.on_train_batch_end(trainer, module)
    callback.on_train_epoch_end(trainer, module)
    ((epoch, row),) = logged
    assert epoch == 1
    assert (row["train/loss"], row["train/loss_ce"]) == (3.0, 2.0)  # each rank's mean is one lower here
    assert row["train/weight_ce"] == 1.0
    assert row["train/images_per_s"] == 30 * 4 / 3.0


@pytest.mark.parametrize("seed", [1, 2])
def test_the_probe_looks_at_the_same_images_whatever_the_runs_seed(monkeypatch, seed):
    monkeypatch.setenv("PL_GLOBAL_SEED", str(seed))
    data = FashionMNISTSample()
    data.setup("fit")
    from distill_dynamics.callbacks import DynamicsProbe

    probe = DynamicsProbe(n_images=8)
    trainer = types.SimpleNamespace(default_root_dir=".", datamodule=data)
    probe.on_fit_start(trainer, types.SimpleNamespace(student=student(), teachers={}))
    other = np.random.default_rng(0).permutation(8)  # whatever is drawn elsewhere
    assert len(other) == 8
    first = FashionMNISTSample(seed=0)
    first.setup("fit")
    assert probe.probe_set.probe_id == first.probe_set(8, 0).probe_id


def rows(run):
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


class InTheMiddle(pl.Callback):
    """What is validated inside an epoch is another number than that of its end."""

    seen: ClassVar[list[float]] = []

    def on_validation_end(self, trainer, pl_module):
        self.seen.append(float(trainer.callback_metrics["val/acc1"]))


def test_an_epochs_number_is_that_of_its_last_weights(experiment, tmp_path, no_report, capsys):
    InTheMiddle.seen.clear()
    config = experiment(
        trainer__limit_train_batches=5,
        trainer__val_check_interval=3,
        trainer__limit_val_batches=1.0,
        trainer__callbacks=[{"class_path": "test_numbers_and_weights.InTheMiddle"}],
        model__optimizer={"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}},
        model__scheduler=None,
        probe__every_n_epochs=0,
    )
    main(["fit", "--config", str(config), "--name", "r"])
    run = tmp_path / "runs" / "r"
    recorded = [float(row["val/acc1"]) for row in rows(run) if row.get("val/acc1")]
    assert len(InTheMiddle.seen) == 4
    assert recorded == pytest.approx(InTheMiddle.seen[1::2])
    capsys.readouterr()
    main(["validate", "--config", str(run / "config.yaml"), "--ckpt_path", "best"])
    told = dict(line.split() for line in capsys.readouterr().out.splitlines() if "/" in line)
    assert float(told["val/acc1"]) == pytest.approx(max(recorded), abs=1e-4)
    assert float(told["teacher/acc1"]) == pytest.approx(float(rows(run)[0]["teacher/acc1"]), abs=1e-4)
    assert all(len(number.split(".")[1]) == 4 for number in told.values())


def test_a_run_from_anothers_checkpoint_has_a_best_of_its_own(experiment, tmp_path, no_report):
    config = str(experiment(probe__every_n_epochs=0))
    main(["fit", "--config", config, "--name", "a"])
    last = tmp_path / "runs" / "a" / "checkpoints" / "last.ckpt"
    main(["fit", "--config", config, "--name", "b", "--trainer.max_epochs", "3", "--ckpt_path", str(last)])
    for run in ("b", "a"):
        folder = tmp_path / "runs" / run / "checkpoints"
        saved = torch.load(folder / "best.ckpt", weights_only=True)
        assert saved["epoch"] + 1 == {"a": saved["epoch"] + 1, "b": 3}[run]
    (tmp_path / "runs" / "a" / "checkpoints" / "best.ckpt").unlink()
    again = ["--ckpt_path", "last", "--trainer.max_epochs", "3"]
    main(["fit", "--config", str(tmp_path / "runs" / "a" / "config.yaml"), *again])
    best = torch.load(tmp_path / "runs" / "a" / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["epoch"] + 1 == 3


@pytest.mark.parametrize(
    "nothing", [{"trainer__max_epochs": 0}, {"trainer__max_steps": 0}, {"trainer__limit_train_batches": 0}]
)
def test_a_training_of_nothing_is_one_line(experiment, tmp_path, capsys, nothing):
    with pytest.raises(SystemExit) as exit_:
        main(["fit", "--config", str(experiment(**nothing)), "--name", "r"])
    assert exit_.value.code == 2
    (name,) = (key.removeprefix("trainer__") for key in nothing)
    assert f"trainer.{name} is 0: nothing would be trained" in capsys.readouterr().err
    assert not (tmp_path / "runs" / "r").exists()
