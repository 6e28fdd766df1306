"""From a folder of images to a small model: classes are found, and a newcomer's mistakes are lines."""

from pathlib import Path

import pytest
import timm
import torch
import yaml
from conftest import refused
from scripts.make_images import make

from distill_dynamics.cli.main import main

TINY = "{img_size: 32, patch_size: 16, embed_dim: 16, depth: 2, num_heads: 2}"
STUDENT = ["--model.student.name", "deit_tiny_patch16_224", "--model.student.timm_kwargs", TINY]
SHORT = "--data.image_size 32 --data.batch_size 4 --data.num_workers 0 --trainer.max_epochs 1"
SHORT += " --trainer.accelerator cpu --probe.n_images 6 --wandb.mode disabled"
FOLDER = ["fit", "--config", "packaged:image_folder", "--data.data_dir", "images", *STUDENT, *SHORT.split()]
TEACHER = ["fit", "--config", "packaged:image_folder_teacher", "--model.student.pretrained", "false"]
TEACHER += [*FOLDER[3:], "--name", "teacher"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three classes, and a teacher that `fit` has trained for an epoch: runs/teacher."""
    root = tmp_path_factory.mktemp("folder")
    make(root / "images", classes=3, train=4, val=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr("distill_dynamics.cli.fit_summary.write_report", lambda *args: None)
        for variable in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
            patch.setenv(variable, "0")
            patch.delenv(variable)
        main(TEACHER)
    return root


@pytest.fixture(autouse=True)
def inside(folder, monkeypatch):
    monkeypatch.chdir(folder)


def test_the_folder_tells_names_and_number_of_classes(no_report):
    made = timm.create_model("local-dir:runs/teacher/student", pretrained=True)
    assert made.num_classes == 3
    assert made.pretrained_cfg["label_names"] == ["stripes_00", "stripes_01", "stripes_02"]
    main([*FOLDER, "--model.teacher.checkpoint", "runs/teacher/student", "--name", "one"])
    saved = yaml.safe_load(Path("runs/one/config.yaml").read_text())["model"]
    assert saved["student"]["init_args"]["timm_kwargs"]["num_classes"] == 3
    # A file of a stranger: what it is of and of how many classes has to be known before it is read.
    torch.save({"model": made.state_dict()}, "stranger.pth")
    of = ["--model.teacher.name", "deit_tiny_patch16_224", "--model.teacher.timm_kwargs", TINY]
    main([*FOLDER, "--model.teacher.checkpoint", "stranger.pth", *of, "--name", "two"])
    folders = ("local-dir:runs/one/student", "local-dir:runs/two/student")
    one, two = (timm.create_model(folder, pretrained=True).state_dict() for folder in folders)
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_a_teacher_without_a_head_or_of_a_file_that_says_its_classes_stays_as_it_is(no_report):
    headless = timm.create_model("vit_small_patch14_dinov2", **{**yaml.safe_load(TINY), "img_size": 32})
    torch.save(headless.state_dict(), "headless.pth")
    of = ["--model.teacher.name", "vit_small_patch14_dinov2", "--model.teacher.timm_kwargs", TINY]
    teacher = ["--model.teacher.checkpoint", "headless.pth", *of, "--model.alpha", "0"]
    main([*FOLDER, *teacher, "--name", "three"])
    main([*FOLDER, "--model.teacher.checkpoint", "runs/teacher/student/model.safetensors", "--name", "four"])
    for run in ("three", "four"):
        saved = yaml.safe_load(Path(f"runs/{run}/config.yaml").read_text())["model"]
        assert saved["student"]["init_args"]["timm_kwargs"]["num_classes"] == 3
        assert "num_classes" not in (saved["teacher"]["init_args"]["timm_kwargs"] or {})


def test_a_number_that_is_given_stays(capsys):
    given = [word.replace("{", "{num_classes: 7, ") if word == TINY else word for word in FOLDER]
    line = refused(capsys, *given, "--model.teacher.checkpoint", "runs/teacher/student")
    assert "model.student has 7 classes and the data 3" in line


def _stranger(classes: int) -> None:
    model = timm.create_model("deit_tiny_patch16_224", num_classes=classes, **yaml.safe_load(TINY))
    torch.save(model.state_dict(), "other.pth")


MISTAKES = {
    "no folder": (["--data.data_dir", "imges"], "imges/train is missing"),
    "the split, not the folder above": (["--data.data_dir", "images/train"], "train/<class>/<image>"),
    "no teacher": (["--model.teacher.checkpoint", "null"], "model.teacher: give the name of a timm model"),
    "a teacher's file that is not there": (["--model.teacher.checkpoint", "t.pth"], "no such file: t.pth"),
    "a run for its student": (["--model.teacher.checkpoint", "runs/teacher"], "runs/teacher/student?"),
    "a file that tells nothing": (["--model.teacher.checkpoint", "other.pth"], "give the name of the timm"),
    "a teacher of other classes": (
        [
            *("--model.teacher.checkpoint", "other.pth", "--model.teacher.name", "deit_tiny_patch16_224"),
            *("--model.teacher.timm_kwargs", TINY),
        ],
        "model.teacher: its weights (other.pth) have a head of other classes than the 3 here",
    ),
    "a teacher without a head": (
        [
            *("--model.teacher.checkpoint", "other.pth", "--model.teacher.name", "deit_tiny_patch16_224"),
            *("--model.teacher.timm_kwargs", TINY),
        ],
        "model.teacher: its weights (other.pth) have no head, and one made anew answers at random: train it",
    ),
    "a misspelt student": (["--model.student.name", "deit_tny_patch16_224"], "'deit_tiny_patch16_224'"),
    "a misspelt option": (["--data.batch_sise", "8"], "did you mean 'batch_size'"),
    "fewer images than a batch": (["--data.batch_size", "64"], "data.batch_size: 64 is more than the 12"),
    "fewer images than the probe's": (["--probe.n_images", "32"], "probe"),
    "images of another size than the student's": (["--data.image_size", "48"], "takes 32 x 32 images"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.filterwarnings("ignore:other.pth")
def test_a_newcomers_mistake_is_a_line(capsys, mistake):
    words, right = MISTAKES[mistake]
    _stranger(0 if mistake == "a teacher without a head" else 7)
    line = refused(capsys, *FOLDER, "--model.teacher.checkpoint", "runs/teacher/student", *words)
    last = line.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert right in last
    assert "Traceback" not in line
    assert not Path("runs/image_folder-1").exists()


def test_a_folder_that_is_not_given_is_asked_for(capsys):
    line = refused(capsys, "fit", "--config", "packaged:image_folder")
    assert line.endswith("image_folder.yaml:29: data: required, but not given: data_dir\n")
