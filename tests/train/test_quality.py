"""Quality without labels: what is measured of features while a student without classes is trained."""

import json
import subprocess

import numpy as np
import pytest
import timm
import torch
from conftest import fit_once, program, refused
from lightning.pytorch import seed_everything
from neighbours import knn_by_hand
from PIL import Image
from safetensors import safe_open
from test_without_classes import CHANGES, rows

from distill_dynamics import Backbone, Distiller, Term
from distill_dynamics.cli.main import main
from distill_dynamics.data import FashionMNISTSample
from distill_dynamics.dynamics.measures.feature_quality import QUALITY
from distill_dynamics.losses import PooledKD
from distill_dynamics.report.page import write_report
from distill_dynamics.report.runs import load_runs
from distill_dynamics.report.study import Study
from distill_dynamics.report.tables import results_rows
from distill_dynamics.tables import accuracies, accuracy_rows
from distill_dynamics.train.quality import FeatureQuality, quality_facts

STUDENT_KWARGS = CHANGES["model__student"]["timm_kwargs"]
EMA = {"class_path": "distill_dynamics.callbacks.EMA", "init_args": {"decay": 0.0}}


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A run on the sample without its labels, with an average that is the latest weights."""
    folder = tmp_path_factory.mktemp("measured")
    return fit_once(folder, **CHANGES, trainer__callbacks=[EMA], trainer__max_epochs=3)


def by_hand(features, targets):
    """kNN top-1 where of each class the first half is the bank."""
    bank = np.zeros(len(targets), bool)
    for label in set(targets.tolist()):
        places = np.flatnonzero(targets == label)
        bank[places[: -(-len(places) // 2)]] = True
    found = knn_by_hand(features[bank], targets[bank], features[~bank], 20, 0.07)
    return 100 * np.mean(np.array(found) == targets[~bank])


def test_every_epoch_has_the_quality_of_its_features_the_untrained_too(measured):
    table = rows(measured)
    assert [row["epoch"] for row in table] == [0, 1, 2, 3]
    assert all(f"val/{name}" in row for row in table for name in QUALITY)
    assert [all(f"teacher/{name}" in row for name in QUALITY) for row in table] == [True, *[False] * 3]
    student = Backbone(checkpoint=measured / "checkpoints" / "epoch_0002.ckpt").eval()
    data = FashionMNISTSample(batch_size=16)
    data.setup("validate")
    pixels = torch.as_tensor(data.sources["val"].pixels[:200])[:, None] / 255  # limit_val_batches: 2
    images = (pixels - torch.tensor(student.mean)) / torch.tensor(student.std)
    with torch.no_grad():
        features = student.model(images).double().numpy()  # timm's, which has no head
    targets = data.sources["val"].targets[:200]
    assert table[2]["val/knn1"] == pytest.approx(by_hand(features, targets), abs=1e-4)
    p = np.linalg.svd(features - features.mean(0), compute_uv=False) ** 2
    p /= p.sum()
    assert table[2]["val/effective_rank"] == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-3)


def test_the_teachers_quality_is_of_the_images_that_the_students_is_of(measured):
    """The first 200, at its own size, in three channels."""
    seed_everything(1, verbose=False)  # as the run, which makes the student first
    Backbone(**{**CHANGES["model__student"], "timm_kwargs": {**STUDENT_KWARGS, "num_classes": 0}})
    teacher = Backbone(**CHANGES["model__teacher"])
    data = FashionMNISTSample()
    data.setup("validate")
    shown = [
        np.asarray(Image.fromarray(pixels).resize((56, 56), Image.Resampling.BICUBIC))
        for pixels in data.sources["val"].pixels[:200]
    ]
    images = torch.as_tensor(np.stack(shown))[:, None].expand(-1, 3, -1, -1) / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (teacher.mean, teacher.std))
    with torch.no_grad():
        features = teacher.model((images - mean) / std).double().numpy()
    expected = by_hand(features, data.sources["val"].targets[:200])
    assert rows(measured)[0]["teacher/knn1"] == pytest.approx(expected, abs=1e-4)
    p = np.linalg.svd(features - features.mean(0), compute_uv=False) ** 2
    p /= p.sum()
    assert rows(measured)[0]["teacher/effective_rank"] == pytest.approx(
        np.exp(-(p * np.log(p)).sum()), rel=1e-3
    )


def test_one_batch_is_not_all_of_them(tmp_path, no_report):
    """1 is one batch, 1.0 is all; of 0 nothing is measured of the teacher either."""
    given = CHANGES | {"trainer__max_epochs": 1, "probe__every_n_epochs": 0}
    run = fit_once(tmp_path, "one", trainer__limit_val_batches=1, **given)
    (start,) = json.loads((run / "run.json").read_text())["starts"]
    assert start["data"]["val_images"] is None
    assert "val_queries" not in start["data"]
    none = fit_once(tmp_path, "none", trainer__limit_val_batches=0, **given)
    assert not [name for row in rows(none) for name in row if name.startswith(("teacher/", "val/"))]


def test_the_average_has_the_quality_of_the_weights_that_it_is(measured):
    for row in rows(measured)[1:]:
        for name in QUALITY:
            assert row[f"val/{name}_ema"] == pytest.approx(row[f"val/{name}"], rel=1e-4)


def test_the_best_checkpoint_is_that_of_the_highest_knn1(measured):
    trained = rows(measured)[1:]
    best = max(trained, key=lambda row: row["val/knn1"])
    saved = torch.load(measured / "checkpoints" / "best.ckpt", weights_only=True, map_location="cpu")
    assert saved["epoch"] + 1 == best["epoch"]
    with safe_open(measured / "student" / "model.safetensors", "pt") as file:
        header = file.metadata()
    assert json.loads(header["epoch"]) == best["epoch"]
    assert json.loads(header["val_knn1"]) == pytest.approx(best["val/knn1"])
    assert Backbone(checkpoint=measured / "student").stated_accuracy is None  # a kNN's is no accuracy
    timm.create_model(f"local-dir:{measured / 'student'}", pretrained=True)
    card = (measured / "student" / "README.md").read_text()
    assert f"| kNN top-1, validation | {best['val/knn1']:.2f} % after {best['epoch']:.0f} epoch" in card
    assert "type: knn_top1" in card
    assert "by chance 10 %" in card
    assert (measured / "dynamics" / "student_best.npz").exists()


def test_the_report_says_of_which_measure_it_speaks(measured, tmp_path):
    (run,) = load_runs([measured])
    assert not [line for line in run.warnings if "acc1" in line or "knn1" in line]
    known = accuracies(run.metrics)
    assert [*known][:4] == ["teacher", "student, untrained", "student, best", "student, last"]
    assert known["student, best"].epoch > 0
    header, *_ = accuracy_rows(run.metrics)
    assert header == ("features", "kNN top-1 (%)", "linear top-1 (%)", "effective rank", "epoch")
    study = Study([run])
    header, *_ = results_rows(study)
    assert header[4:-2] == ("kNN top-1 best", "kNN top-1 last", "linear top-1 last", "EMA, kNN best")
    page = write_report([measured], tmp_path / "report.html").read_text()
    assert 'kNN <span class="unbroken">top-1</span> at the best' in page
    assert "10 %</span> by chance" in page
    assert "chance is 10 %" in page
    assert "top-5" not in page


def test_what_is_printed_names_the_measure(tmp_path, capsys):
    fit_once(tmp_path, **CHANGES, trainer__max_epochs=1, probe__every_n_epochs=0)
    printed = capsys.readouterr().out
    assert "untrained: " in printed
    assert "% kNN top-1" in printed
    assert "(chance 10.00 %)" in printed
    assert "  kNN " in printed
    assert "student, untrained" in printed


def test_how_many_are_queries_is_told_where_all_are_measured():
    data = FashionMNISTSample(labels=False)
    data.setup("validate")
    images = len(data.sources["val"].targets)
    assert quality_facts(data, whole=True) == {"val_classes": 10, "val_queries": images // 2}
    assert quality_facts(data, whole=False) == {"val_classes": 10}


def gathered(features, targets, batches):
    metric = FeatureQuality()
    for places in batches:
        known = [place % len(targets) for place in places]
        shown = torch.where(torch.tensor(places) < 0, torch.tensor(-100), targets[known])
        metric.update(features[known], shown, torch.tensor(places))
    return metric.compute()


def test_the_order_of_batches_and_padding_change_nothing():
    generator = torch.Generator().manual_seed(0)
    features, targets = torch.randn(30, 8, generator=generator), torch.arange(30) % 4
    one = gathered(features, targets, [range(20), range(20, 30)])
    ranks = [[0, 2, 4, 6, 8], [10, 12, 14, 16, 18], [20, 22, 24, 26, 28], [1, 3, 5, 7, 9]]
    assert gathered(features, targets, [*ranks, [11, 13, 15, 17, 19], [21, 23, 25, 27, 29, -1]]) == one


def test_features_that_are_not_finite_are_told(tmp_path):
    import lightning.pytorch as pl

    broken = Backbone(
        "deit_tiny_patch16_224", timm_kwargs=CHANGES["model__student"]["timm_kwargs"] | {"num_classes": 0}
    )
    with torch.no_grad():
        broken.model.norm.bias[0] = torch.nan
    quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    trainer = pl.Trainer(accelerator="cpu", limit_val_batches=2, default_root_dir=tmp_path, **quiet)
    data = FashionMNISTSample(labels=False, batch_size=8, eval_batch_size=8)
    distiller = Distiller(broken, broken, {"pooled": Term(PooledKD)})
    with pytest.warns(UserWarning, match="knn1 is not known of the student: its features are not all finite"):
        (row,) = trainer.validate(distiller, datamodule=data, verbose=False)
    assert all(np.isnan(row[f"val/{name}"]) for name in QUALITY)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (20, "was measured on images of 2 of 3 classes"),
        (10, "knn1 is not known of the student: .* of one class"),
    ],
)
def test_images_of_some_classes_alone_are_told(tmp_path, images, words):
    """Folders are read class by class, so that the first batches are of the first ones."""
    import lightning.pytorch as pl

    data = FashionMNISTSample(labels=False, batch_size=10, eval_batch_size=10)
    data.setup("validate")
    source = data.sources["val"]
    first = np.concatenate([np.flatnonzero(source.targets == label)[:10] for label in range(3)])
    source.pixels, source.targets, data.classes = source.pixels[first], source.targets[first], ["a", "b", "c"]
    student = Backbone(
        "deit_tiny_patch16_224", timm_kwargs=CHANGES["model__student"]["timm_kwargs"] | {"num_classes": 0}
    )
    quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    limit = {"limit_val_batches": images // 10, "default_root_dir": tmp_path}
    trainer = pl.Trainer(accelerator="cpu", **quiet, **limit)
    with pytest.warns(UserWarning, match=words):
        trainer.validate(
            Distiller(student, student, {"pooled": Term(PooledKD)}), datamodule=data, verbose=False
        )


PLATEAU = "lightning.pytorch.cli.ReduceLROnPlateau"


def scheduler(**init_args):
    return {"model__scheduler": {"class_path": PLATEAU, "init_args": init_args}, "model__lr_images": None}


def test_schedules_and_stops_can_look_at_knn1(tmp_path, no_report):
    stop = {
        "class_path": "lightning.pytorch.callbacks.EarlyStopping",
        "init_args": {"monitor": "val/knn1", "mode": "max", "patience": 0, "min_delta": 100.0},
    }
    given = scheduler(monitor="val/knn1", mode="max")
    run = fit_once(tmp_path, **CHANGES, **given, trainer__callbacks=[stop], trainer__max_epochs=5)
    assert len(rows(run)) < 6


@pytest.mark.parametrize(
    ("init_args", "words"),
    [
        (
            {"monitor": "val/acc1", "mode": "max"},
            "there is no metric val/acc1 to monitor; there are train/loss, val/",
        ),
        ({"monitor": "val/knn1"}, "val/knn1 is better when it is higher"),
    ],
)
def test_a_metric_that_is_not_measured_is_one_line(experiment, capsys, init_args, words):
    assert words in refused(capsys, "fit", "--config", experiment(**CHANGES, **scheduler(**init_args)))


def test_a_cache_tells_the_teachers_quality(measured, tmp_path, no_report, monkeypatch):
    config = str(measured.parent / "tiny.yaml")
    main(["cache-teacher", "--config", config, "--out", str(tmp_path / "cache")])
    options = [
        "--model.teacher_cache",
        str(tmp_path / "cache"),
        "--runs_dir",
        str(tmp_path),
        "--trainer.max_epochs",
        "1",
    ]
    monkeypatch.setattr("distill_dynamics.train.prepare_teachers.measure", None)  # it would fail
    main(["fit", "--config", config, "--name", "cached", *options])
    online, cached = rows(measured)[0], rows(tmp_path / "cached")[0]
    for name in QUALITY:
        assert cached[f"teacher/{name}"] == online[f"teacher/{name}"]


@pytest.mark.slow
@pytest.mark.parametrize("limits", [("1.0", "1.0"), ("4", "2")])
def test_two_ranks_measure_what_one_does(measured, limits):
    """All images, and the first 308: four batches of one, two of each."""
    given = ["validate", "--config", measured / "config.yaml", "--ckpt_path", "last"]
    given += ["--data.init_args.eval_batch_size", "77"]
    found = []
    for more, limit in zip(
        ([], ["--trainer.devices", "2", "--trainer.strategy", "ddp"]), limits, strict=True
    ):
        options = [*given, *more, "--trainer.limit_val_batches", limit]
        done = subprocess.run(**program(*options), capture_output=True, timeout=300)
        assert done.returncode == 0, done.stderr
        lines = (line.split() for line in str(done.stdout).splitlines())
        found.append({words[0]: float(words[1]) for words in lines if len(words) == 2 and "/" in words[0]})
    one, two = found
    assert {*one} >= {f"{who}/{name}" for who in ("val", "teacher") for name in QUALITY}
    assert one == pytest.approx(two, rel=1e-3)
