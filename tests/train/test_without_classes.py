"""Training without classes: a headless student, a teacher of another size and other channels."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import VIT, fit_once, program, refused
from PIL import Image
from safetensors.torch import load_file
from test_fit import assert_same, checkpoint

from distill_dynamics import Backbone
from distill_dynamics.cli.main import main
from distill_dynamics.data import UnlabelledFolder
from distill_dynamics.dynamics import Profile, profile_model
from distill_dynamics.report.provenance import circumstances_of
from distill_dynamics.report.runs import load_runs

LOSSES = "distill_dynamics.losses"
HEADLESS = {key: value for key, value in VIT.items() if key != "num_classes"}
STUDENT = {"name": "deit_tiny_patch16_224", "timm_kwargs": {**HEADLESS, "depth": 2, "proj_drop_rate": 0.1}}
TEACHER = {
    "name": "vit_tiny_patch16_224",
    "timm_kwargs": {**HEADLESS, "in_chans": 3, "img_size": 56, "num_classes": 0, "embed_dim": 24, "depth": 3},
}
TOKEN = {"loss": {"class_path": f"{LOSSES}.TokenKD"}, "weight": 1.0, "last": 1}
CHANGES = {
    "model__student": STUDENT,
    "model__teacher": TEACHER,
    "model__terms": {"token": TOKEN},
    "data__init_args__labels": False,
    "data__init_args__views": 1,
    "checkpoint_every_n_epochs": 1,
}


def rows(run):
    """Of metrics.csv, what is a number and not of the clock."""
    with (run / "metrics.csv").open() as file:
        table = [*csv.DictReader(file)]
    return [{k: float(v) for k, v in row.items() if v and k != "train/images_per_s"} for row in table]


@pytest.fixture(scope="module")
def grey_folder(tmp_path_factory):
    """40 grey images of 60 x 70 pixels, in folders of any depth."""
    root = tmp_path_factory.mktemp("grey") / "photos"
    rng = np.random.default_rng(0)
    for i in range(40):
        place = root / ("", "a", "a/b")[i % 3]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (60, 70), dtype=np.uint8)).save(place / f"{i:02d}.png")
    return root


def of_folder(folder, **init_args):
    given = {"data_dir": str(folder), "image_size": 28, "batch_size": 8, "num_workers": 0, "views": 2}
    return {
        "data": {"class_path": "distill_dynamics.data.UnlabelledFolder", "init_args": given | init_args},
        "model__student": {**STUDENT, "timm_kwargs": {**STUDENT["timm_kwargs"], "in_chans": 3}},
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run on the sample without its labels."""
    return fit_once(tmp_path_factory.mktemp("finished"), **CHANGES)


@pytest.fixture(scope="module")
def unmeasured(tmp_path_factory, grey_folder):
    """A run on a folder without validation images, and what it printed."""
    changes = {k: v for k, v in CHANGES.items() if not k.startswith("data")} | of_folder(grey_folder)
    return fit_once(tmp_path_factory.mktemp("unmeasured"), **changes)


def test_the_student_has_no_head_and_no_accuracy(finished):
    student = Backbone(checkpoint=finished / "checkpoints" / "last.ckpt")
    assert student.num_classes == 0
    names = set().union(*rows(finished))
    assert {"train/loss_token", "train/loss"} <= names
    assert not {"train/loss_ce", "train/loss_kd", "val/acc1", "val/loss", "teacher/acc1"} & names


def test_without_validation_images_the_last_student_is_kept(unmeasured):
    assert not any(name.startswith("val/") for name in set().union(*rows(unmeasured)))
    assert sorted(path.name for path in (unmeasured / "checkpoints").iterdir()) == [
        "epoch_0001.ckpt", "epoch_0002.ckpt", "last.ckpt",
    ]  # fmt: skip
    last = checkpoint(unmeasured)["state_dict"]
    exported = load_file(unmeasured / "student" / "model.safetensors")
    assert exported.keys() == {
        k.removeprefix("student.model.") for k in last if k.startswith("student.model.")
    }
    assert all(torch.equal(value, last[f"student.model.{name}"]) for name, value in exported.items())
    card = (unmeasured / "student" / "README.md").read_text()
    assert "the last student of" in card
    assert "pipeline_tag: image-feature-extraction" in card
    config = json.loads((unmeasured / "student" / "config.json").read_text())
    assert config["num_classes"] == 0
    assert "label_names" not in config
    starts = json.loads((unmeasured / "run.json").read_text())["starts"]
    assert starts[-1]["data"]["val_images"] == 0
    assert "of the training images of UnlabelledFolder" in " ".join(circumstances_of(load_runs([unmeasured])))


def test_a_run_that_was_killed_is_exported_from_its_last_checkpoint(unmeasured, tmp_path):
    killed = tmp_path / "killed"
    shutil.copytree(unmeasured, killed)
    shutil.rmtree(killed / "student")
    main(["export", str(killed), "--out", str(tmp_path / "out")])
    found, wanted = (folder / "model.safetensors" for folder in (tmp_path / "out", unmeasured / "student"))
    assert found.read_bytes() == wanted.read_bytes()
    assert "the last student of" in (tmp_path / "out" / "README.md").read_text()


def test_plain_timm_makes_the_student_and_gives_its_features(unmeasured):
    import timm

    model = timm.create_model(f"local-dir:{unmeasured / 'student'}", pretrained=True).eval()
    images = torch.rand(2, 3, 28, 28)
    ours = Backbone(checkpoint=unmeasured / "student").eval()
    assert torch.equal(model(images), ours(images, logits=False, pooled=True).pooled)


def test_a_run_that_is_continued_equals_one_that_was_not_stopped(finished, tmp_path, no_report):
    stopped = tmp_path / finished.name
    shutil.copytree(finished, stopped)
    given = ["--config", str(stopped / "config.yaml"), "--ckpt_path"]
    main(["fit", *given, str(stopped / "checkpoints" / "epoch_0001.ckpt")])
    one, other = checkpoint(finished), checkpoint(stopped)
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        assert_same(one[key], other[key], key)
    assert rows(finished) == rows(stopped)


def test_a_cached_run_has_the_losses_of_one_without(unmeasured, tmp_path, no_report):
    config = str(unmeasured.parent / "tiny.yaml")
    main(["cache-teacher", "--config", config, "--out", str(tmp_path / "cache")])
    main(["cache-teacher", "--config", config, "--out", str(tmp_path / "cache"), "--verify"])
    options = ["--model.teacher_cache", str(tmp_path / "cache"), "--runs_dir", str(tmp_path)]
    main(["fit", "--config", config, "--name", "cached", *options])
    for online, cached in zip(rows(unmeasured)[1:], rows(tmp_path / "cached")[1:], strict=True):
        assert cached["train/loss_token"] == pytest.approx(online["train/loss_token"], rel=1e-3)


def test_the_teachers_profile_is_of_the_same_images_at_its_own_size(unmeasured, grey_folder):
    profile = Profile.load(unmeasured / "dynamics" / "teacher.npz")
    student = Profile.load(unmeasured / "dynamics" / "student_epoch_0002.npz")
    assert profile.probe_indices.tolist() == student.probe_indices.tolist()
    assert profile.probe_id == student.probe_id
    files = sorted(grey_folder.rglob("*.png"), key=lambda path: str(path.relative_to(grey_folder)))
    pixels = []
    for index in profile.probe_indices:
        with Image.open(files[index]) as image:  # 56 / 0.875 = 64, the shorter side
            large = image.convert("RGB").resize((int(64 * 70 / 60), 64), Image.Resampling.BICUBIC)
        left = round((large.width - 56) / 2)
        pixels.append(np.asarray(large.crop((left, 4, left + 56, 60))).transpose(2, 0, 1) / 255)
    torch.manual_seed(1)  # as the run
    teacher = _teacher_of(unmeasured)
    mean, std = (np.reshape(values, (1, 3, 1, 1)) for values in (teacher.mean, teacher.std))
    images = torch.tensor((np.stack(pixels) - mean) / std, dtype=torch.float32)
    expected = profile_model(teacher, images)
    assert profile.entropy == pytest.approx(expected.entropy, abs=1e-3)
    assert profile.magnitude == pytest.approx(expected.magnitude, rel=1e-4)


def _teacher_of(run):
    """The random teacher of a run: it is made after the student, from the run's seed."""
    import lightning.pytorch as pl

    pl.seed_everything(1, verbose=False)
    kwargs = {**STUDENT["timm_kwargs"], "in_chans": 3, "num_classes": 0}
    Backbone(STUDENT["name"], timm_kwargs=kwargs)
    return Backbone(TEACHER["name"], timm_kwargs=TEACHER["timm_kwargs"])


def test_whoever_shows_the_teacher_images_shows_them_at_its_size(tmp_path, capsys, grey_folder):
    """A ViT refuses others: gates, floors, the conflict of gradients and half precision each show it some."""
    fitnet = {"loss": {"class_path": f"{LOSSES}.FitNet"}, "pairs": "depth"}
    gate = {"class_path": "distill_dynamics.train.gates.CapacityGate"}
    conflict = {
        "class_path": "distill_dynamics.callbacks.GradientConflict",
        "init_args": {"every_n_epochs": 1},
    }
    changes = {k: v for k, v in CHANGES.items() if not k.startswith("data")} | {
        "trainer__max_epochs": 1,
        "model__terms": {"token": {**TOKEN, "gate": None}, "fitnet": {**fitnet, "gate": gate}},
        "trainer__callbacks": [conflict],
        "model__teacher_precision": "bf16-mixed",
    }
    run = fit_once(tmp_path, **changes | of_folder(grey_folder, view_size=42))
    assert "dynamics/conflict/token/block_01" in set().union(*rows(run))
    assert "fitnet" in json.loads((run / "run.json").read_text())["starts"][-1]["floors"]
    printed = capsys.readouterr().out
    assert "bf16-mixed beside float32, 32 images" in printed
    assert "views of 42 px are resized to its 56 px" in printed
    assert "UnlabelledFolder: no classes, 28 px (views of 42 px), " in printed
    assert "no validation images: nothing is measured, and the last student is exported" in printed
    assert "the last one; for timm.create_model" in " ".join(printed.split())


CE = {"loss": {"class_path": f"{LOSSES}.CrossEntropy"}, "weight": 1.0}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model__terms": {"own": CE}}, "model.terms.own: its loss reads"),
        ({"model__terms": {"own": {"loss": {"class_path": f"{LOSSES}.HardKD"}}}}, "the data have no classes"),
        ({"model__alpha": 0.5}, "model.alpha, temperature and label_smoothing are of ce and kd"),
        ({"model__temperature": 2.0}, "model.alpha, temperature and label_smoothing are of ce and kd"),
        ({"model__terms": None}, "no term is left"),
        (
            {"model__student": {**STUDENT, "timm_kwargs": {**VIT, "depth": 2}}},
            "set model.student.timm_kwargs.num_classes: 0",
        ),
        (
            {"model__teacher": {**TEACHER, "timm_kwargs": {**TEACHER["timm_kwargs"], "img_size": 50}}},
            "model.teacher: vit_tiny_patch16_224 takes images of 50 px, which its patches of 14 px do not "
            "divide; set timm_kwargs.img_size: 42 or 56",
        ),
    ],
)
def test_what_needs_classes_or_another_size_is_one_line(experiment, capsys, changes, words):
    error = refused(capsys, "fit", "--config", experiment(**{**CHANGES, **changes}))
    assert words in error
    assert len(error.strip().splitlines()) == 1


def test_a_folder_without_classes_has_no_labels_to_be_set(experiment, capsys, grey_folder):
    changes = {k: v for k, v in CHANGES.items() if not k.startswith("data")}
    error = refused(capsys, "fit", "--config", experiment(**changes | of_folder(grey_folder, labels=True)))
    assert "labels" in error


@pytest.mark.parametrize(
    ("classes", "images", "told"), [(3, 1, "3 labelled validation images of 3"), (1, 4, "4 labelled")]
)
def test_labels_that_tell_no_student_from_another_are_one_line(
    experiment, capsys, grey_folder, tmp_path, classes, images, told
):
    for i in range(classes * images):
        (tmp_path / f"val/{i % classes}").mkdir(parents=True, exist_ok=True)
        shutil.copy(grey_folder / "00.png", tmp_path / f"val/{i % classes}/{i}.png")
    changes = {k: v for k, v in CHANGES.items() if not k.startswith("data")}
    given = of_folder(grey_folder, val_dir=str(tmp_path / "val"))
    error = refused(capsys, "fit", "--config", experiment(**changes | given))
    assert told in error
    assert "two classes are needed" in error
    assert len(error.strip().splitlines()) == 1


def test_commands_that_need_classes_or_validation_images_are_one_line(unmeasured, capsys):
    given = ["--config", unmeasured / "config.yaml", "--ckpt_path", "last"]
    for command, words in (("predict", "the student has no classes"), ("validate", "no validation images")):
        error = refused(capsys, command, *given)
        assert words in error
        assert len(error.strip().splitlines()) == 1


def test_an_analysis_of_the_runs_data_is_of_its_training_images(unmeasured, tmp_path, grey_folder, no_report):
    given = ["--data", str(unmeasured / "config.yaml"), "--n_images", "4", "--out", str(tmp_path / "out")]
    main(["analyze", "--model", json.dumps(TEACHER), *given])
    record = json.loads((tmp_path / "out" / "analysis.json").read_text())
    assert len(record["images"]["files"]) == 4
    assert all((grey_folder / name).is_file() for name in record["images"]["files"])
    data = UnlabelledFolder(str(grey_folder), image_size=28)
    data.setup("fit")
    (profile,) = [*(tmp_path / "out" / "profiles").rglob("*.npz")]
    assert Profile.load(profile).probe_id == data.probe_set(4, size=56).probe_id


@pytest.mark.slow
def test_two_ranks_train_as_one(finished, tmp_path):
    import subprocess

    given = ["--config", str(finished.parent / "tiny.yaml"), "--runs_dir", str(tmp_path)]
    options = [
        "--model.student.init_args.timm_kwargs.proj_drop_rate",
        "0",
        "--data.init_args.global_batch",
        "16",
    ]
    two = ["--trainer.devices", "2", "--trainer.strategy", "ddp_find_unused_parameters_true"]
    for name, more in (("one", []), ("two", two)):
        command = program("fit", *given, *options, *more, "--name", name)
        done = subprocess.run(**command, capture_output=True, timeout=300)
        assert done.returncode == 0, done.stderr
    one, other = (rows(Path(tmp_path, name)) for name in ("one", "two"))
    assert [row["train/loss"] for row in one[1:]] == pytest.approx(
        [row["train/loss"] for row in other[1:]], rel=1e-4
    )


def test_a_gate_is_made_of_images_without_classes(tmp_path):
    gated = {**TOKEN, "last": 2, "gate": {"class_path": "distill_dynamics.train.gates.CapacityGate"}}
    run = fit_once(tmp_path, **CHANGES | {"model__terms": {"token": gated}, "trainer__max_epochs": 1})
    (start,) = json.loads((run / "run.json").read_text())["starts"]
    gates = start["gates"]["token"]
    assert len(gates) == 2
    assert all(0 <= gate <= 1 for *_, gate in gates)
