import os
import shutil
import types

import numpy as np
import pytest
import torch
from conftest import VIT
from test_fit import assert_same, checkpoint, fit, rows
from torch.utils._python_dispatch import TorchDispatchMode

from distill_dynamics import Backbone, Distiller
from distill_dynamics.callbacks import EMA
from distill_dynamics.dynamics import Profile
from distill_dynamics.losses import spectral
from distill_dynamics.train.terms import BoundTerm

pytestmark = pytest.mark.usefixtures("no_report")

# Lightning takes bf16-mixed where 16-mixed is asked for on a CPU; given as a plugin, it is what it says.
FP16 = {"class_path": "lightning.pytorch.plugins.MixedPrecision"}
FP16 |= {"init_args": {"precision": "16-mixed", "device": "cpu"}}
HALF = {
    torch.bfloat16: {"trainer__precision": "bf16-mixed"},
    torch.float16: {"trainer__plugins": [FP16]},
}
KD = "distill_dynamics.losses."
TERMS = {
    "spectral": {"loss": {"class_path": KD + "SpectralKD"}, "weight": 0.2, "first": 1, "last": 1},
    "projector": {"loss": {"class_path": KD + "ProjectorKD"}, "weight": 0.2, "last": 1},
}
SGD = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}}
CONVNEXT = {"depths": [1, 1, 1, 1], "dims": [8, 12, 16, 20], "in_chans": 1, "num_classes": 10}
PIXELS_32 = {
    "data__init_args__image_size": 32,
    "model__teacher__timm_kwargs": {**VIT, "img_size": 32, "patch_size": 16, "embed_dim": 24, "depth": 3},
}


def plain(**changes):
    """No dropout, whose numbers another layout or precision would draw otherwise."""
    same = {
        "model__student__timm_kwargs": {**VIT, "depth": 2},
        "model__terms": TERMS,
        "model__optimizer": SGD,
        "model__scheduler": None,
    }
    return {**same, **changes}


class Dtypes(TorchDispatchMode):
    """The dtype of what every operation gives."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.is_floating_point():
            self.seen.add((func.overloadpacket._qualified_op_name, out.dtype))
        return out


@pytest.mark.parametrize("half", HALF)
def test_losses_and_probes_are_float32_under_mixed_precision(experiment, tmp_path, monkeypatch, half):
    runs = tmp_path / "runs"
    fit(experiment("whole", **plain()), "--name", "whole")

    dtypes, logits, parts = Dtypes(), set(), []
    compute, of_term = spectral.spectral_kd, BoundTerm.forward

    def watched(student_map, teacher_map):
        with dtypes:
            return compute(student_map, teacher_map)

    def kept(self, student, teacher, batch):
        if self.name == "kd":
            logits.update({student["logits", None].dtype, teacher["kd", 0, "logits"].dtype})
        parts.append(of_term(self, student, teacher, batch))
        return parts[-1]

    monkeypatch.setattr(spectral, "spectral_kd", watched)
    monkeypatch.setattr(BoundTerm, "forward", kept)
    fit(experiment("mixed", **plain(**HALF[half])), "--name", "mixed")

    assert logits == {half}
    assert {dtype for _, dtype in dtypes.seen} == {torch.float32}
    assert "aten::sum" in {name for name, _ in dtypes.seen}
    assert {value.dtype for part in parts for value in part} == {torch.float32}
    assert all(v.dtype == torch.float32 for v in checkpoint(runs / "mixed")["state_dict"].values())

    for name in ("teacher", "student_epoch_0000"):
        whole, mixed = ((runs / run / "dynamics" / f"{name}.npz").read_bytes() for run in ("whole", "mixed"))
        assert whole == mixed
    a, b = (Profile.load(runs / run / "dynamics" / "student_epoch_0002.npz") for run in ("whole", "mixed"))
    np.testing.assert_allclose(a.magnitude, b.magnitude, rtol=0.01)
    for row, other in zip(rows(runs / "whole")[1:], rows(runs / "mixed")[1:], strict=True):
        for name in [name for name in row if name.startswith("train/loss")]:
            assert float(other[name]) == pytest.approx(float(row[name]), rel=0.02)
            assert other[name] != row[name]


@pytest.mark.parametrize(
    ("trainers", "teachers", "dtypes"),
    [
        (None, "bf16-mixed", (torch.float32, torch.bfloat16)),
        (None, "16-mixed", (torch.float32, torch.float16)),
        ("bf16-mixed", "32-true", (torch.bfloat16, torch.float32)),
    ],
)
def test_the_teacher_may_have_a_precision_of_its_own(
    experiment, tmp_path, monkeypatch, no_report, capsys, trainers, teachers, dtypes
):
    seen, of_term = set(), BoundTerm.forward

    def kept(self, student, teacher, batch):
        if self.name == "kd":
            seen.add((student["logits", None].dtype, teacher["kd", 0, "logits"].dtype))
        loss = of_term(self, student, teacher, batch)
        assert {value.dtype for value in loss} == {torch.float32}
        return loss

    monkeypatch.setattr(BoundTerm, "forward", kept)
    settings = plain(trainer__precision=trainers, probe__every_n_epochs=0, trainer__max_epochs=1)
    fit(experiment("own", **settings, model__teacher_precision=teachers), "--name", "own")
    assert seen == {dtypes}
    assert ("beside float32" in capsys.readouterr().out) == (teachers != "32-true")
    fit(experiment("same", **settings), "--name", "same")
    own, same = (rows(tmp_path / "runs" / name) for name in ("own", "same"))
    assert float(own[0]["teacher/acc1"]) == pytest.approx(float(same[0]["teacher/acc1"]), abs=2)
    assert own[1]["train/loss_kd"] != same[1]["train/loss_kd"]
    assert float(own[1]["train/loss_kd"]) == pytest.approx(float(same[1]["train/loss_kd"]), rel=0.05)


def test_a_teachers_precision_needs_weights_in_float32(experiment, capsys):
    with pytest.raises(SystemExit):
        fit(experiment(trainer__precision="bf16-true", model__teacher_precision="32-true"))
    (line,) = capsys.readouterr().err.splitlines()
    assert all(word in line for word in ("model.teacher_precision", "bf16-true"))


def test_everything_may_be_in_half_precision(experiment, tmp_path, no_report):
    fit(experiment(**plain(trainer__precision="bf16-true", probe__every_n_epochs=0)), "--name", "half")
    first, *_, last = rows(tmp_path / "runs" / "half")
    assert 0 < float(first["teacher/acc1"]) < 100
    assert np.isfinite(float(last["train/loss"]))
    weights = checkpoint(tmp_path / "runs" / "half")["state_dict"]
    assert {v.dtype for name, v in weights.items() if name.startswith("student.")} == {torch.bfloat16}


@pytest.mark.parametrize("half", HALF)
def test_the_spectral_loss_of_half_precision_maps_is_computed_in_float32(half):
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(2, channels, 6, 6, generator=generator).to(half) for channels in (4, 8)]
    with torch.autocast("cpu", dtype=half), Dtypes() as dtypes:
        loss = spectral.spectral_kd(*maps)
    assert {name for name, dtype in dtypes.seen if dtype == half} <= {"aten::detach", "aten::alias"}
    assert loss.item() == pytest.approx(spectral.spectral_kd(*(x.double() for x in maps)).item(), rel=1e-5)


def test_soft_labels_and_targets_lose_nothing_to_half_precision():
    logits = torch.randn(64, 1000, generator=torch.Generator().manual_seed(0)).bfloat16()
    targets = torch.arange(64)
    distiller = Distiller(Backbone("deit_tiny_patch16_224", timm_kwargs={**VIT, "depth": 1}))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = distiller.terms["ce"]({("logits", None): logits}, {}, {"targets": targets}).mean
    expected = torch.nn.functional.cross_entropy(logits.double(), targets, label_smoothing=0.1)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_channels_last_trains_as_channels_first(experiment, tmp_path):
    runs = tmp_path / "runs"
    student = {"name": "convnext_atto", "timm_kwargs": CONVNEXT}
    terms = {"spectral": {**TERMS["spectral"], "first": 0, "last": 0, "pairs": [[1, 1], [2, 2]]}}
    changes = plain(model__student=student, model__terms=terms, probe__every_n_epochs=0, **PIXELS_32)
    del changes["model__student__timm_kwargs"]
    fit(experiment("first", **changes), "--name", "first")
    fit(experiment("last", **changes, model__channels_last=True), "--name", "last")
    first, last = (checkpoint(runs / name)["state_dict"] for name in ("first", "last"))
    for key, value in first.items():
        torch.testing.assert_close(last[key], value, rtol=1e-4, atol=1e-6)
    kernels = [key for key, value in first.items() if value.ndim == 4 and min(value.shape[1:]) > 1]
    assert kernels
    for key in kernels:
        assert first[key].is_contiguous()
        assert last[key].is_contiguous(memory_format=torch.channels_last)
    assert float(rows(runs / "last")[-1]["train/loss"]) == pytest.approx(
        float(rows(runs / "first")[-1]["train/loss"]), rel=1e-5
    )


def test_channels_last_is_of_both_models_and_their_images():
    models = [Backbone(name, timm_kwargs={"num_classes": 10}) for name in ("test_resnet", "test_resnet")]
    distiller = Distiller(*models, channels_last=True)
    other = types.SimpleNamespace(mean=models[0].mean, std=(0.5, 0.5, 0.5), image_size=8)
    distiller.teacher.take_images_of(other)
    for model, images in zip(models, (distiller.for_student, distiller.teacher.images), strict=True):
        assert model.model.layer1[0].conv2.weight.is_contiguous(memory_format=torch.channels_last)
        assert images(torch.rand(2, 3, 8, 8)).is_contiguous(memory_format=torch.channels_last)


HAS_COMPILER = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")


@pytest.mark.slow
@pytest.mark.skipif(not HAS_COMPILER, reason="torch.compile needs a C++ compiler on a CPU")
def test_compiled_models_train_as_they_are_and_keep_their_names(experiment, tmp_path, monkeypatch):
    runs = tmp_path / "runs"
    callbacks = [{"class_path": "distill_dynamics.callbacks.EMA", "init_args": {"decay": 0.5}}]
    changes = plain(trainer__callbacks=callbacks)
    fit(experiment("eager", **changes), "--name", "eager")
    compiled = set()
    finish = EMA.on_validation_epoch_end

    def watched(self, trainer, module):
        for model in (module.student, module.teacher.backbone):
            compiled.update(block._compiled_call_impl is not None for block in model.model.blocks)
        finish(self, trainer, module)

    monkeypatch.setattr(EMA, "on_validation_epoch_end", watched)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    fit(experiment("compiled", **changes, model__compile=True), "--name", "compiled")
    assert compiled == {True}
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 2
    assert not torch._dynamo.utils.counters["graph_break"]

    eager, other = (checkpoint(runs / name) for name in ("eager", "compiled"))
    for a, b in (
        (eager["state_dict"], other["state_dict"]),
        (eager["callbacks"]["EMA"], other["callbacks"]["EMA"]),
    ):
        assert list(a) == list(b)
        for key, value in a.items():
            torch.testing.assert_close(b[key], value, rtol=1e-4, atol=1e-6)
    for name in ("teacher", "student_epoch_0000"):  # probes are not compiled
        one, two = ((runs / run / "dynamics" / f"{name}.npz").read_bytes() for run in ("eager", "compiled"))
        assert one == two
    assert_same(eager["distill_dynamics"]["student"], other["distill_dynamics"]["student"])


def test_clipping_in_mixed_precision_needs_an_optimiser_that_can(experiment, capsys):
    """Lightning's own answer is a traceback, after the first step."""
    clipped = {"trainer__precision": "bf16-mixed", "trainer__gradient_clip_val": 1.0}
    with pytest.raises(SystemExit) as stopped:
        fit(experiment(**clipped))
    assert stopped.value.code == 2
    assert "model.optimizer.init_args.fused: false" in capsys.readouterr().err
    adam = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3, "fused": False}}
    fit(experiment(**clipped, model__optimizer=adam))
