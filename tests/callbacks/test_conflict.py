import copy
import csv
import math
import os
import random
import subprocess
import sys

import lightning.pytorch as pl
import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from conftest import ROOT, VIT, wandb_record

from distill_dynamics import Backbone, Distiller, Term, UserError
from distill_dynamics.callbacks import DynamicsProbe, GradientConflict
from distill_dynamics.callbacks.conflict import block_parameters, conflict
from distill_dynamics.cli.main import main
from distill_dynamics.data import FashionMNISTSample, draw_probe
from distill_dynamics.losses import ProjectorKD, SpectralKD

pytestmark = pytest.mark.usefixtures("no_report")

CALLBACK = "distill_dynamics.callbacks.GradientConflict"


def fit(config, *args):
    main(["fit", "--config", str(config), *args])


def rows(run_dir):
    with (run_dir / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def cosines(row):
    found = {k.removeprefix("dynamics/conflict/"): v for k, v in row.items() if "/conflict/" in k}
    return {name: float(value) for name, value in found.items() if value}


def leaf(*values):
    return torch.tensor(values, requires_grad=True)


@pytest.mark.parametrize(
    ("term", "other", "expected"),
    [
        ([1.0, 2.0], [-1.0, -2.0], -1),
        ([1.0, 2.0], [10.0, 20.0], 1),
        ([1.0, 0.0], [0.0, 5.0], 0),
        ([1.0, 0.0], [-3.0, 3.0], -math.sqrt(0.5)),
        ([1e-15, 0.0], [-4e-15, 3e-15], -0.8),
    ],
)
def test_the_cosine_of_two_linear_losses_is_that_of_their_coefficients(term, other, expected):
    p = leaf(0.3, -0.7)
    losses = [p @ torch.tensor(coefficients) for coefficients in (term, other)]
    found = conflict({"t": losses[0]}, {"t": 0.2}, losses[1], [[p]])
    assert found["t"] == [pytest.approx(expected, abs=1e-6)]
    assert p.grad is None


def test_the_rest_of_one_term_holds_the_others_at_their_weight():
    p = leaf(1.0, 1.0)
    found = conflict({"a": p[0], "b": p[1]}, {"a": 7.0, "b": 3.0}, 4 * p[0], [[p]])
    assert found == {
        "a": [pytest.approx(0.8)],
        "b": [pytest.approx(0.0)],
    }  # (1, 0) and (4, 3); (0, 1), (11, 0)


def test_parameters_of_a_block_are_one_vector_and_one_that_is_not_reached_counts_as_zero():
    a, b, c = leaf(1.0), leaf(1.0), leaf(1.0)
    found = conflict({"t": a.sum()}, {"t": 1.0}, (3 * a + 4 * b + c).sum(), [[a, b], [c]])
    assert found["t"][0] == pytest.approx(0.6)
    assert math.isnan(found["t"][1])  # the term does not reach it


@pytest.mark.parametrize(
    ("term", "other"),
    [
        (lambda p: p.sum(), lambda p: 0 * p.sum()),
        (lambda p: 0 * p.sum(), lambda p: p.sum()),
        (lambda p: p.sum() * math.inf, lambda p: p.sum()),
        (lambda p: torch.tensor(3.0), lambda p: p.sum()),
    ],
)
def test_what_has_no_direction_has_no_cosine(term, other):
    p = leaf(1.0, 2.0)
    assert math.isnan(conflict({"t": term(p)}, {"t": 1.0}, other(p), [[p]])["t"][0])
    assert conflict({"t": term(p)}, {"t": 1.0}, other(p), [[]])["t"] == [pytest.approx(math.nan, nan_ok=True)]


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("deit_tiny_patch16_224", {"embed_dim": 12, "num_heads": 2, "depth": 11}),
        ("swin_tiny_patch4_window7_224", {"embed_dim": 12, "depths": (1, 1, 1, 1)}),
        ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (4, 8, 8, 8)}),
        ("resnet10t", {}),
    ],
)
def test_a_blocks_parameters_are_those_of_the_module_that_timm_names(name, kwargs):
    student = Backbone(name, timm_kwargs=kwargs)
    for layer, found in zip(student.layers, block_parameters(student), strict=True):
        expected = list(student.model.get_submodule(layer).parameters())
        assert [id(p) for p in found] == [id(p) for p in expected]
        assert found or layer == "act1"


def student(**kwargs):
    drop = {"proj_drop_rate": 0.5, "drop_path_rate": 0.5}
    return Backbone("deit_tiny_patch16_224", timm_kwargs={**VIT, "depth": 3, **drop, **kwargs})


def teacher():
    return Backbone("cait_xxs24_224", timm_kwargs={**VIT, "embed_dim": 24, "depth": 4})


TERMS = {
    "spectral": Term(SpectralKD, weight=0.5, pairs=[(1, 1), (2, 3)]),
    "projector": Term(ProjectorKD, weight=2.0, first=1),
}


class Memory(pl.loggers.Logger):
    """Rows as they were logged."""

    name = version = "memory"

    def __init__(self):
        super().__init__()
        self.rows = []

    def log_metrics(self, metrics, step=None):
        self.rows.append(dict(metrics))

    def log_hyperparams(self, *args, **kwargs):
        pass

    def conflicts(self):
        return {row["epoch"]: cosines(row) for row in self.rows if cosines(row)}


def run(tmp_path, distiller, *callbacks, data=None, **settings):
    logger = Memory()
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    limits = {"max_epochs": 1, "limit_train_batches": 2, "limit_val_batches": 1, "num_sanity_val_steps": 0}
    trainer = pl.Trainer(
        **{**quiet, **limits, **settings},
        callbacks=list(callbacks),
        logger=logger,
        accelerator="cpu",
        default_root_dir=tmp_path,
    )
    trainer.fit(distiller, datamodule=data or FashionMNISTSample(batch_size=8, eval_batch_size=100))
    return logger


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_cosines_are_those_of_gradients_by_plain_timm_and_backward(tmp_path, precision):
    torch.manual_seed(0)
    s, t = student(), teacher()
    distiller = Distiller(s, t, TERMS, alpha=0.7)
    plain = timm.create_model("deit_tiny_patch16_224", **VIT, depth=3).eval()
    plain.load_state_dict(s.model.state_dict())
    projector = copy.deepcopy(distiller.terms["projector"][0].projector)
    data = FashionMNISTSample(batch_size=8, eval_batch_size=100, crop_padding=4)
    callback = GradientConflict(every_n_epochs=1, n_images=16, seed=3)
    logger = run(tmp_path, distiller, callback, data=data, precision=precision)

    source = data.sources["train"]
    indices = draw_probe(source.targets, 16, 3)
    x = (torch.from_numpy(source.pixels[indices][:, None]) / 255 - 0.2860) / 0.3530
    y = torch.from_numpy(source.targets[indices])
    with torch.no_grad():
        teacher_final, teacher_maps = t.model.forward_intermediates(
            (x * 0.3530 + 0.2860 - t.mean[0]) / t.std[0], norm=False
        )
        teacher_logits = t.model.forward_head(teacher_final)

    def spectral(a, b):
        b = F.adaptive_avg_pool1d(b.flatten(2).transpose(1, 2), a.shape[1]).transpose(1, 2).view_as(a)
        a, b = (torch.fft.rfft2(m, norm="ortho") for m in (a, b))
        return F.mse_loss(torch.stack([a.real, a.imag]), torch.stack([b.real, b.imag]))

    def project(a, b):
        a = projector(a.movedim(1, -1)).movedim(-1, 1)
        return F.mse_loss(*(F.batch_norm(m, None, None, training=True) for m in (a, b)))

    def gradients(pick):
        plain.zero_grad()
        final, maps = plain.forward_intermediates(x, norm=False)
        logits = plain.forward_head(final)
        ce = F.cross_entropy(logits, y, label_smoothing=0.1)
        kd = F.kl_div(
            logits.log_softmax(1), teacher_logits.log_softmax(1), log_target=True, reduction="batchmean"
        )
        parts = {
            "other": 0.3 * ce + 0.7 * kd,
            "spectral": 0.5 * (spectral(maps[0], teacher_maps[0]) + spectral(maps[1], teacher_maps[2])) / 2,
            "projector": 2.0 * project(maps[0], teacher_maps[0]),
        }
        sum(parts[name] for name in pick).backward()
        zero = torch.zeros(1)
        return [
            torch.cat(
                [zero.expand(p.numel()) if p.grad is None else p.grad.flatten() for p in b.parameters()]
            )
            for b in plain.blocks
        ]

    expected = {}
    for name, depth in (("spectral", 2), ("projector", 1)):
        rest = {"other", "spectral", "projector"} - {name}
        pairs = list(zip(gradients([name]), gradients(rest), strict=True))
        for block in range(1, depth + 1):
            expected[f"{name}/block_{block:02d}"] = F.cosine_similarity(*pairs[block - 1], dim=0).item()
    found = logger.conflicts()
    assert found[0] == pytest.approx(expected, abs=1e-4)
    assert list(found) == [0, 1]
    assert found[1] != found[0]
    assert found[1].keys() == expected.keys()


class Look(pl.Callback):
    """Keeps everything that a measurement could disturb."""

    def __init__(self):
        self.seen = []

    def on_train_epoch_end(self, trainer, module):
        self.seen.append(
            (
                [torch.get_rng_state(), torch.as_tensor(np.random.get_state()[1])],  # noqa: NPY002
                [p.detach().clone() for p in module.parameters()],
                [p.grad.clone() for p in module.parameters() if p.grad is not None],
                [b.clone() for b in module.buffers()],
                [m.training for m in [*module.modules(), *module.teacher.backbone.modules()]],
                random.getstate(),
                torch.is_grad_enabled(),
            )
        )


class HalfAStep(pl.Callback):
    """Gradients as they are while batches are accumulated."""

    def on_train_epoch_end(self, trainer, module):
        for p in module.parameters():
            p.grad = torch.rand_like(p)


class Restless(torch.nn.Module):
    """A loss that draws random numbers and behaves otherwise in training."""

    def __init__(self, student_channels, teacher_channels):
        super().__init__()
        self.norm = torch.nn.BatchNorm2d(student_channels)

    def forward(self, student_map, teacher_map):
        noise = torch.rand(()) + random.random() + np.random.random()  # noqa: NPY002
        return (F.dropout(self.norm(student_map), 0.1, self.training) * noise).square().mean()


def test_a_measurement_leaves_everything_as_it_was(tmp_path):
    terms = {**TERMS, "restless": Term(Restless, last=1)}
    before, after = Look(), Look()
    distiller = Distiller(student(), teacher(), terms)
    logger = run(tmp_path, distiller, HalfAStep(), before, GradientConflict(every_n_epochs=1), after)
    assert "restless/block_03" in logger.conflicts()[1]
    (a,), (b,) = before.seen, after.seen
    assert len(a[2]) > 10
    for x, y in zip(a[:4], b[:4], strict=True):
        assert all(torch.equal(p, q) for p, q in zip(x, y, strict=True))
    assert a[4:] == b[4:]
    assert any(a[4])


def test_a_run_ends_the_same_with_and_without_it_and_logs_where_the_probe_does(
    experiment, tmp_path, blank_pictures
):
    callbacks = [{"class_path": CALLBACK, "init_args": {"n_images": 16}}]
    changes = {"trainer__max_epochs": 3, "probe__every_n_epochs": 2}
    fit(
        experiment("with", **changes, trainer__callbacks=callbacks),
        "--name",
        "with",
        "--wandb.mode",
        "offline",
    )
    fit(experiment("without", **changes), "--name", "without")
    runs = tmp_path / "runs"
    a, b = (
        torch.load(runs / name / "checkpoints" / "last.ckpt", weights_only=True)
        for name in ("with", "without")
    )
    assert a["state_dict"].keys() == b["state_dict"].keys()
    assert all(torch.equal(a["state_dict"][key], b["state_dict"][key]) for key in a["state_dict"])
    for x, y in zip(*(c["optimizer_states"][0]["state"].values() for c in (a, b)), strict=True):
        assert all(torch.equal(x[key], y[key]) for key in x)

    table = rows(runs / "with")
    assert [row["epoch"] for row in table] == ["0", "1", "2", "3"]
    names = {"projector/block_01", "projector/block_02"}
    assert [cosines(row).keys() for row in table] == [names, set(), names, names]
    assert all(bool(row["dynamics/student/entropy/block_01"]) == bool(cosines(row)) for row in table)
    assert not any("/conflict/" in column for column in rows(runs / "without")[0])

    (folder,) = (runs / "with" / "wandb").glob("offline-run-*")
    defined, history, _ = wandb_record(folder)
    metric = "dynamics/conflict/projector/block_01"
    assert [one["step_metric"] for one in defined[metric]] == ["dynamics/epoch"]
    assert [item["dynamics/epoch"] for item in history if metric in item] == [0, 2, 3]


class StopAfterAnEpoch(pl.Callback):
    def on_train_epoch_end(self, trainer, module):
        trainer.should_stop = True


def test_epochs_are_its_own_or_the_probes_and_a_run_stopped_early_has_its_last(tmp_path):
    def epochs(*callbacks, **settings):
        found = run(tmp_path, Distiller(student(), teacher(), TERMS), *callbacks, **settings).conflicts()
        return list(found)

    assert epochs(DynamicsProbe(2, n_images=4), GradientConflict(), max_epochs=5) == [0, 2, 4, 5]
    assert epochs(DynamicsProbe(2, n_images=4), GradientConflict(3), max_epochs=5) == [0, 3, 5]
    assert epochs(DynamicsProbe(0), GradientConflict(3), StopAfterAnEpoch(), max_epochs=5) == [0, 1]


def test_a_term_of_no_weight_is_measured_and_a_frozen_block_is_not(tmp_path):
    s = student()
    s.model.blocks[0].requires_grad_(False)
    terms = {"spectral": Term(SpectralKD, weight=0.0, first=2)}
    found = run(tmp_path, Distiller(s, teacher(), terms), GradientConflict(1)).conflicts()
    assert list(found[0]) == ["spectral/block_02"]


def test_nothing_to_measure_is_one_line(tmp_path):
    with pytest.warns(UserWarning, match="GradientConflict: model.terms aligns no blocks") as caught:
        logger = run(tmp_path, Distiller(student(), teacher()), GradientConflict(1))
    assert not logger.conflicts()
    assert len([w for w in caught if "GradientConflict" in str(w.message)]) == 1
    for parameter in (distiller := Distiller(student(), teacher(), TERMS)).student.model.blocks.parameters():
        parameter.requires_grad_(False)
    with pytest.warns(UserWarning, match="GradientConflict: no parameter of deit_tiny"):
        assert not run(tmp_path, distiller, GradientConflict(1)).conflicts()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: [GradientConflict(0)], ["every_n_epochs"]),
        (lambda: [GradientConflict(n_images=0)], ["n_images"]),
        (lambda: [GradientConflict()], ["probe.every_n_epochs", "off"]),
        (lambda: [DynamicsProbe(0), GradientConflict()], ["probe.every_n_epochs", "off"]),
        (lambda: [GradientConflict(1, n_images=10**6)], ["1000000", "images"]),
    ],
)
def test_a_mistake_is_one_line(tmp_path, make, words):
    with pytest.raises(UserError) as error:
        run(tmp_path, Distiller(student(), teacher(), TERMS), *make())
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words)


@pytest.mark.slow
def test_two_ranks_find_what_one_finds(experiment, tmp_path):
    callbacks = [{"class_path": CALLBACK}]
    config = experiment(trainer__callbacks=callbacks, trainer__max_epochs=1, trainer__max_steps=1)
    fit(config, "--name", "one")
    command = [sys.executable, "-m", "distill_dynamics", "fit", "--config", config, "--name", "two"]
    options = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    subprocess.run(
        [*command, *options], check=True, cwd=ROOT, capture_output=True, env=os.environ, timeout=300
    )
    one, two = (rows(tmp_path / "runs" / name) for name in ("one", "two"))
    assert cosines(one[0]) == pytest.approx(cosines(two[0]), abs=1e-5)
    assert cosines(one[0]).keys() == cosines(two[1]).keys()
