"""What others script against, run as they would: it does not change, and files of version 0.1.0 are read."""

import csv
import inspect
import json
import math
import shutil
from importlib import metadata
from typing import ClassVar

import lightning.pytorch as pl
import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from conftest import ROOT, VIT

from distill_dynamics.cli.main import main
from distill_dynamics.runs import lease

FIXTURES = ROOT / "tests" / "fixtures"


@pytest.fixture(autouse=True)
def _no_lease_of_the_test_before():
    """`main` of one process is run again and again here."""
    yield
    lease.release()


def rows(run):
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


# --- imports, signatures, shapes


@pytest.mark.parametrize(
    ("place", "name", "parameters"),
    [
        (
            "distill_dynamics",
            "Backbone",
            "name=None, pretrained=False, checkpoint=None, timm_kwargs=None, mean=None, std=None, "
            "crop_pct=None",
        ),
        ("distill_dynamics", "Distiller", "student, teacher=None, terms=None, alpha=None, temperature=1.0"),
        ("distill_dynamics.dynamics", "channel_entropy", "x, value_range, bins=100"),
        ("distill_dynamics.dynamics", "channel_spectrum", "x"),
        ("distill_dynamics.dynamics", "activation_magnitude", "x"),
        ("distill_dynamics.losses", "SoftKD", "temperature=1.0"),
        ("distill_dynamics.losses", "SpectralKD", "student_channels=None, teacher_channels=None"),
        ("distill_dynamics.losses", "ProjectorKD", "student_channels, teacher_channels, trainable=True"),
        (
            "distill_dynamics.dynamics",
            "profile_model",
            "backbone, images, bins=100, value_range='global', layers='all', batch_size=32",
        ),
    ],
)
def test_signatures(place, name, parameters):
    """Each documented parameter in its place, with its default; others may come after."""
    found = inspect.signature(getattr(__import__(place, fromlist=[name]), name)).parameters
    by_place = [key for key, parameter in found.items() if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]
    for place_, documented in enumerate(parameters.split(", ")):
        key, has_default, default = documented.partition("=")
        assert key in found
        if found[key].kind is not inspect.Parameter.KEYWORD_ONLY:
            assert by_place[place_] == key
        if has_default:
            assert repr(found[key].default).replace('"', "'") == default


def test_measures():
    from distill_dynamics.dynamics import activation_magnitude, channel_entropy, channel_spectrum

    x = torch.randn(2, 8, 3, 5)
    entropy = channel_entropy(x, (-4.0, 4.0), bins=10)
    assert entropy.shape == (2, 3, 5)
    counts, _ = np.histogram(x[1, :, 2, 4].numpy(), bins=10, range=(-4, 4))
    p = counts[counts > 0] / 8
    assert entropy[1, 2, 4].item() == pytest.approx(-(p * np.log2(p)).sum(), abs=1e-5)
    spectrum = channel_spectrum(x)
    assert spectrum.shape == (8,)
    np.testing.assert_allclose(spectrum, np.abs(np.fft.fft(x, axis=1) / 8).mean((0, 2, 3)), rtol=1e-4)
    assert activation_magnitude(x).shape == ()
    assert activation_magnitude(x).item() == pytest.approx(x.abs().mean().item())


def test_losses():
    from distill_dynamics.losses import ProjectorKD, SoftKD, SpectralKD

    student, teacher = torch.randn(4, 10), torch.randn(4, 10)
    kl = torch.nn.functional.kl_div(
        (student / 2).log_softmax(1), (teacher / 2).softmax(1), reduction="batchmean"
    )
    assert SoftKD(temperature=2.0)(student, teacher).item() == pytest.approx(4 * kl.item(), rel=1e-5)
    small, large = torch.randn(4, 8, 2, 2), torch.randn(4, 12, 3, 3)
    assert SpectralKD()(small, large).shape == ()
    assert SpectralKD(8, 8)(small, small).item() == 0
    projector = ProjectorKD(8, 12)
    assert projector(small, large).shape == ()
    assert all(parameter.requires_grad for parameter in projector.parameters())
    assert not any(p.requires_grad for p in ProjectorKD(8, 12, trainable=False).parameters())


def deit(**changes):
    from distill_dynamics import Backbone

    return Backbone("deit_tiny_patch16_224", timm_kwargs={**VIT, "depth": 3, **changes}).eval()


def test_backbone_and_features():
    from distill_dynamics import Features

    images = torch.zeros(2, 1, 28, 28)
    features = deit()(images, layers=[1, -1])
    assert isinstance(features, Features)
    assert features.logits.shape == (2, 10)
    assert [tuple(one.shape) for one in features.maps] == [(2, 16, 2, 2)] * 2
    assert deit()(images).maps == []
    assert deit()(images, layers=[1], logits=False).logits is None
    assert deit(num_classes=0)(images).logits is None
    assert deit().layers == ["blocks.0", "blocks.1", "blocks.2"]


def check_profile(profile, layers, images):
    """The documented attributes and their shapes."""
    assert isinstance(profile.model, str)
    assert len(profile.layers) == layers
    assert profile.entropy.shape == profile.magnitude.shape == profile.clipped.shape == (layers,)
    assert len(profile.spectrum) == len(profile.spectrum_se) == layers
    assert all(a.shape == b.shape for a, b in zip(profile.spectrum, profile.spectrum_se, strict=True))
    assert profile.entropy_images.shape == profile.magnitude_images.shape == (images, layers)
    np.testing.assert_allclose(profile.entropy, profile.entropy_images.mean(0), rtol=1e-6)
    np.testing.assert_allclose(profile.magnitude, profile.magnitude_images.mean(0), rtol=1e-6)
    assert profile.value_range.shape == (layers, 2)
    assert profile.range_mode in ("global", "layer", "scaled", "explicit")
    assert profile.bins == 100
    assert isinstance(profile.probe_id, str)
    assert isinstance(profile.schema, int)


def test_profile(tmp_path):
    from distill_dynamics.dynamics import Profile, profile_model

    images = torch.randn(5, 1, 28, 28)
    profile = profile_model(deit(), images, value_range=(-3, 3), batch_size=2)
    check_profile(profile, 3, 5)
    assert profile.epoch is None
    assert profile_model(deit(), [images[:2], images[2:]], layers=[2]).layers == ["blocks.1"]
    profile.save(tmp_path / "x.npz")
    again = Profile.load(tmp_path / "x.npz")
    assert again.layers == profile.layers
    np.testing.assert_array_equal(again.entropy_images, profile.entropy_images)


# --- the command line and a run directory


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict", "analyze", "report", "convert"])
def test_commands(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    assert f"distill_dynamics {command}" in capsys.readouterr().out


def test_a_run_directory_and_its_metrics(experiment, tmp_path, no_report):
    from distill_dynamics import Backbone

    config = experiment(probe__every_n_epochs=2, checkpoint_every_n_epochs=1)
    main(["fit", "--config", str(config)])
    run = tmp_path / "runs" / "tiny-1"
    files = ["config.yaml", "metrics.csv", "run.json"]
    files += [f"checkpoints/{name}.ckpt" for name in ("epoch_0001", "epoch_0002", "last", "best")]
    names = ("teacher", "student_epoch_0000", "student_epoch_0002", "student_best")
    files += [f"dynamics/{name}.npz" for name in names]
    files += [f"student/{name}" for name in ("config.json", "model.safetensors", "README.md")]
    assert [file for file in files if not (run / file).is_file()] == []
    assert Backbone(checkpoint=run / "student").name == "deit_tiny_patch16_224"
    (start,) = json.loads((run / "run.json").read_text())["starts"]
    assert {"seed", "versions", "commit", "data", "command", "ended"} <= start.keys()

    table = rows(run)
    assert [row["epoch"] for row in table] == ["0", "1", "2"]
    assert float(table[0]["teacher/acc1"]) <= 100
    measured = [f"dynamics/student/{curve}/block_01" for curve in ("entropy", "magnitude")]
    assert all(table[0][name] and table[2][name] for name in measured)
    assert table[0]["dynamics/teacher/entropy/block_03"]
    for name in ("loss", "loss_ce", "loss_kd", "loss_projector", "lr", "images_per_s"):
        assert math.isfinite(float(table[1][f"train/{name}"]))
    for name in ("acc1", "acc5", "loss"):
        assert math.isfinite(float(table[2][f"val/{name}"]))


# --- files of version 0.1.0


@pytest.fixture
def old_run(tmp_path):
    """A copy, for what continues it."""
    shutil.copytree(FIXTURES / "run", tmp_path / "run")
    return tmp_path / "run"


def test_an_old_profile_is_loaded():
    from distill_dynamics.dynamics import Profile

    for name, layers, epoch in (("teacher", 12, None), ("student_epoch_0001", 2, 1), ("student_best", 2, 2)):
        profile = Profile.load(FIXTURES / "run" / "dynamics" / f"{name}.npz")
        check_profile(profile, layers, 8)
        assert profile.epoch == epoch
    first = float(rows(FIXTURES / "run")[1]["dynamics/student/entropy/block_01"])
    assert Profile.load(FIXTURES / "run/dynamics/student_epoch_0001.npz").entropy[0] == first


def test_an_old_student_is_loaded_and_scores_what_its_file_says():
    from distill_dynamics import Backbone
    from distill_dynamics.data import FashionMNISTSample

    path = FIXTURES / "run" / "checkpoints" / "student_best.safetensors"
    student = Backbone("deit_tiny_patch16_224", checkpoint=path).eval()
    state = safetensors.torch.load_file(path)
    assert all(torch.equal(value, state[key]) for key, value in student.model.state_dict().items())
    assert (student.mean, student.std, student.input_size) == ((0.286,), (0.353,), (1, 28, 28))
    data = FashionMNISTSample(eval_batch_size=500)
    data.setup("validate")
    with torch.no_grad():
        right = sum((student(x).logits.argmax(1) == y).sum().item() for x, y in data.val_dataloader())
    assert right / 10 == pytest.approx(float(rows(FIXTURES / "run")[2]["val/acc1"]), abs=0.2)


class Keep(pl.Callback):
    """Keeps what was measured last."""

    metrics: ClassVar[dict] = {}

    def on_validation_end(self, trainer, pl_module):
        self.metrics.update(trainer.callback_metrics)


@pytest.mark.parametrize("checkpoint", ["best", "last"])
def test_an_old_checkpoint_is_validated(old_run, checkpoint):
    Keep.metrics.clear()
    keep = ["--trainer.callbacks+=test_contract.Keep"]
    main(["validate", "--config", str(old_run / "config.yaml"), "--ckpt_path", checkpoint, *keep])
    assert Keep.metrics["val/acc1"].item() == pytest.approx(float(rows(old_run)[2]["val/acc1"]), abs=0.2)


def test_an_old_run_is_resumed(old_run, capsys):
    before = rows(old_run)
    main(
        [
            "fit", "--config", str(old_run / "config.yaml"), "--ckpt_path", "last",
            "--trainer.max_epochs", "3", "--trainer.limit_train_batches", "5",
        ]
    )  # fmt: skip
    after = rows(old_run)
    assert [row["epoch"] for row in after] == ["0", "1", "2", "3"]
    for old, new in zip(before, after[:3], strict=True):
        assert {k: v for k, v in old.items() if v} == {k: v for k, v in new.items() if v}
    assert [start["from_epoch"] for start in json.loads((old_run / "run.json").read_text())["starts"]] == [
        0,
        2,
    ]
    assert "student, best" in capsys.readouterr().out
    assert "88.6" in (old_run / "report.html").read_text()  # the teacher


@pytest.mark.slow
def test_an_old_run_is_reported(tmp_path):
    out = tmp_path / "report.html"
    main(["report", str(FIXTURES / "run"), "--out", str(out)])
    page = out.read_text()
    assert "32.6" in page  # the student
    assert "88.6" in page  # the teacher


def test_an_old_cache_is_used(tmp_path, monkeypatch):
    """But for the versions of packages, whose change it is refused for: those are written into the copy."""
    shutil.copytree(FIXTURES, tmp_path / "fixtures")
    monkeypatch.chdir(tmp_path / "fixtures")
    place = tmp_path / "fixtures" / "cache" / "cache.json"
    cache = json.loads(place.read_text())
    for name in ("torch", "torchvision", "timm", "numpy", "pillow"):
        cache["identity"][f"version of {name}"] = metadata.version(name).split("+")[0]
    place.write_text(json.dumps(cache))
    runs = str(tmp_path / "runs")
    for name, more in (("cached", ["--model.teacher_cache", "cache"]), ("online", [])):
        main(["fit", "--config", "cached.yaml", "--name", name, "--runs_dir", runs, *more])
    cached, online = (rows(tmp_path / "runs" / name) for name in ("cached", "online"))
    assert cached[0]["teacher/acc1"] == online[0]["teacher/acc1"]
    for name in ("train/loss_kd", "train/loss_spectral", "train/loss"):
        np.testing.assert_allclose(
            [float(row[name]) for row in cached[1:]], [float(row[name]) for row in online[1:]], rtol=2e-3
        )
    saved = yaml.safe_load((tmp_path / "runs" / "cached" / "config.yaml").read_text())
    assert saved["model"]["teacher_cache"] == "cache"
