"""A teacher is measured before the first step, and one that is not what it was is said so where one looks."""

import json
import shutil

import lightning.pytorch as pl
import pytest
import torch
from conftest import ROOT, VIT
from test_fit import checkpoint, fit, rows

from distill_dynamics import Backbone, Distiller, UserError
from distill_dynamics.data import FashionMNISTSample
from distill_dynamics.models.teacher_check import accuracy_line, doubt, near_chance
from distill_dynamics.report.runs import load_runs
from distill_dynamics.runs import lease
from distill_dynamics.train import prepare_teachers

pytestmark = pytest.mark.usefixtures("no_report")

DEIT = "deit_tiny_patch16_224"
PACKAGED = {"name": "cait_xxs24_224", "checkpoint": "packaged:cait_fashion_mnist"}


@pytest.fixture(autouse=True)
def _no_lease_of_the_test_before():
    """`main` of one process is run again and again here."""
    yield
    lease.release()


def distiller_with(teacher, **student):
    return Distiller(Backbone(DEIT, timm_kwargs={**VIT, "depth": 1}, **student), teacher)


def trainer(**settings):
    off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    return pl.Trainer(accelerator="cpu", **{**dict.fromkeys(off, False), **settings})


def measured(teacher):
    """Top-1 (%) on the sample's validation images."""
    data = FashionMNISTSample(eval_batch_size=500)
    (values,) = trainer().validate(distiller_with(teacher), datamodule=data, verbose=False)
    return values["teacher/acc1"]


def test_a_teacher_is_measured_under_the_normalisation_that_is_given(tmp_path):
    """Its weights in a file that says nothing, as a stranger's does: timm's default is not its own."""
    path = tmp_path / "foreign.pth"
    source = Backbone(**PACKAGED)
    torch.save({"model_state_dict": source.model.state_dict()}, path)
    foreign = {"name": "cait_xxs24_224", "checkpoint": str(path), "timm_kwargs": source.timm_kwargs}
    acc1 = {}
    for how, given in (("timm's for the name", {}), ("as given", {"mean": [0.286], "std": [0.1]})):
        teacher = Backbone(**foreign, **given)
        acc1[how] = measured(teacher)
        line = accuracy_line(teacher, {"acc1": acc1[how]}, FashionMNISTSample())
        assert line.startswith(f"{acc1[how]:.2f} % top-1, mean")
        assert line.endswith(f"({how})")
        assert doubt(teacher, {"acc1": acc1[how]}) is None
    assert acc1["as given"] == pytest.approx(88.6, abs=0.2)
    assert acc1["timm's for the name"] < acc1["as given"] - 2


def test_below_what_its_file_says_is_a_warning(experiment, tmp_path, capsys):
    config = experiment(
        model__teacher={**PACKAGED, "mean": [0.5], "std": [0.5]},
        model__terms=None,
        trainer__max_epochs=1,
        probe__every_n_epochs=0,
    )
    fit(config, "--name", "r")
    run = tmp_path / "runs" / "r"
    found = float(rows(run)[0]["teacher/acc1"])
    printed = capsys.readouterr()
    assert printed.err.count("WARNING: the teacher has") == 2  # before the first step, and at the end
    for text in (f"{found:.2f} % top-1 on the validation images", "says 89.62 %", "mean 0.5, std 0.5"):
        assert text in printed.err
    teacher = json.loads((run / "run.json").read_text())["starts"][0]["teacher"]
    assert teacher["acc1"] == found
    assert "89.62" in teacher["doubt"]
    (run_,) = load_runs([run])
    assert any("89.62" in warning for warning in run_.warnings)
    assert "`cait_xxs24_224`" in (run / "student" / "README.md").read_text()


def test_a_crop_of_the_students_own_is_refused_and_the_teachers_is_told():
    teacher, data = Backbone(**PACKAGED, crop_pct=0.8), FashionMNISTSample(batch_size=8)
    with pytest.raises(UserError, match=r"model\.student\.crop_pct is 0\.9 and data\.crop_pct 1"):
        trainer(max_steps=1).fit(distiller_with(teacher, crop_pct=0.9), datamodule=data)
    assert accuracy_line(teacher, {}, data).endswith("; its own crop is 0.8, the data's 1")


def test_near_chance_is_a_doubt_and_a_good_teacher_is_none():
    random, good = Backbone("cait_xxs24_224", timm_kwargs={**VIT, "depth": 1}), Backbone(**PACKAGED)
    assert "near chance (10.00 %)" in doubt(random, {"acc1": measured(random)})
    assert doubt(good, {"acc1": measured(good)}) is None


@pytest.mark.parametrize(
    ("acc1", "classes", "near"),
    [(0.11, 1000, True), (12.0, 1000, False), (51.0, 2, True), (60.0, 2, False), (17.0, 10, True),
     (22.0, 10, False), (100.0, 1, False)],
)  # fmt: skip
def test_near_chance(acc1, classes, near):
    assert near_chance(acc1, classes) == near


def test_one_of_several_is_called_by_its_name():
    of = {"key": "model.teachers.dino", "title": "teacher dino"}
    for accuracy in ({"acc1": 11.0}, {"knn1": 11.0}):
        line = doubt(Backbone(**PACKAGED), accuracy, 10, **of)
        assert line.startswith("the teacher dino has 11.00 %")
        assert "look at model.teachers.dino.mean" in line


def test_two_points_below_its_file_are_none_too_many():
    teacher = Backbone(**PACKAGED)
    assert doubt(teacher, {"acc1": 87.7}) is None
    assert "89.62" in doubt(teacher, {"acc1": 87.5})
    # Of 16 images three standard errors, sqrt(0.8962 x 0.1038 / 16), are 22.9 points.
    assert doubt(teacher, {"acc1": 65.0}, images=16) is None
    assert "89.62" in doubt(teacher, {"acc1": 64.0}, images=16)
    assert doubt(teacher, {}) is None


def test_it_is_measured_before_the_first_step(monkeypatch):
    order = []
    for place, name in ((prepare_teachers, "measure"), (Distiller, "training_step")):
        original = getattr(place, name)

        def watched(*args, name=name, original=original):
            order.append(name)
            return original(*args)

        monkeypatch.setattr(place, name, watched)
    data = FashionMNISTSample(batch_size=8, eval_batch_size=100)
    settings = {"max_epochs": 1, "limit_train_batches": 3, "limit_val_batches": 1}
    trainer(**settings).fit(distiller_with(Backbone(**PACKAGED)), datamodule=data)
    assert order == ["measure", *["training_step"] * 3]


def test_a_continued_run_measures_a_teacher_that_is_another(tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    shutil.copytree(ROOT / "tests" / "fixtures" / "run", run)
    more = ["--ckpt_path", "last", "--trainer.limit_train_batches", "2", "--probe.every_n_epochs", "0"]
    measured = []
    original = prepare_teachers.measure

    def watched(teacher, trainer, classes):
        measured.append(trainer.current_epoch)
        return original(teacher, trainer, classes)

    monkeypatch.setattr(prepare_teachers, "measure", watched)
    fit(run / "config.yaml", *more, "--trainer.max_epochs", "3")  # a file of before, which does not say
    fit(run / "config.yaml", *more, "--trainer.max_epochs", "4")
    assert measured == []
    printed = capsys.readouterr()
    assert "88.60 % top-1 (its file: 89.62), mean 0.286, std 0.1 (as its weights say)" in printed.out
    assert "WARNING" not in printed.err
    other = ["--model.teacher.init_args.mean", "[0.5]", "--model.teacher.init_args.std", "[0.5]"]
    fit(run / "config.yaml", *more, "--trainer.max_epochs", "5", *other)
    assert measured == [0]
    table = rows(run)
    assert [row["epoch"] for row in table] == ["0", "1", "2", "3", "4", "5"]
    assert float(table[0]["teacher/acc1"]) == pytest.approx(88.6)
    assert float(table[4]["teacher/acc1"]) < 86.6
    assert checkpoint(run)["distill_dynamics"]["teacher_accuracy"]["acc1"] < 86.6
