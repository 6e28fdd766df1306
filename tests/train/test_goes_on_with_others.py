"""A run that goes on with another teacher, or other validation images, than its checkpoint had says so."""

import re
import shutil

import numpy as np
import pytest
import torch
from conftest import fit_once
from PIL import Image
from test_fit import checkpoint, fit, rows
from test_without_classes import CHANGES, of_folder

from distill_dynamics import Backbone
from distill_dynamics.cli.main import main

TEACHER = CHANGES["model__teacher"]


def teacher(path, seed):
    """The same architecture, with weights of their own."""
    torch.manual_seed(seed)
    Backbone(**TEACHER).export(path)


@pytest.fixture(scope="module")
def first_epoch(tmp_path_factory):
    """A run of one step, with a teacher's file beside it."""
    folder = tmp_path_factory.mktemp("goes_on")
    teacher(folder / "teacher.safetensors", 0)
    given = {**CHANGES, "model__teacher": {**TEACHER, "checkpoint": str(folder / "teacher.safetensors")}}
    quick = {"trainer__max_epochs": 1, "trainer__limit_train_batches": 1, "probe__every_n_epochs": 0}
    return fit_once(folder, **given | quick)


@pytest.fixture
def run(first_epoch, tmp_path):
    """A copy of it, with the teacher in another place."""
    shutil.copytree(first_epoch, tmp_path / "r")
    shutil.copy(first_epoch.parent / "teacher.safetensors", tmp_path)
    return tmp_path / "r"


def goes_on(run, capsys, *options):
    """What is said of it on stderr, and the rows from the last of before on."""
    before = len(rows(run))
    options = [*options, "--model.teacher.init_args.checkpoint", str(run.parent / "teacher.safetensors")]
    capsys.readouterr()
    fit(run / "config.yaml", "--ckpt_path", "last", "--trainer.max_epochs", "2", *options)
    error = capsys.readouterr().err
    return [line for line in error.splitlines() if "goes on with" in line], rows(run)[before - 1 :]


def test_nothing_is_said_of_the_same_teacher_in_another_place(run, capsys, no_report):
    lines, _ = goes_on(run, capsys)
    assert lines == []
    assert [bool(row.get("teacher/knn1")) for row in rows(run)] == [True, False, False]  # the checkpoint's


def test_a_teacher_and_images_that_are_others_are_told_and_measured_anew(run, capsys, no_report):
    before = rows(run)[0]
    teacher(run.parent / "teacher.safetensors", 1)
    options = ["--model.teacher_precision", "bf16-mixed", "--trainer.limit_val_batches", "1"]
    (images, teachers), (first, _) = goes_on(run, capsys, *options)
    assert "validation images than those of its checkpoint: batches 2, now 1; val/* before" in images
    assert re.search(r"checkpoint: model.teacher: digest \w+, now \w+, precision None, now bf16-m", teachers)
    assert first["teacher/effective_rank"] not in ("", before["teacher/effective_rank"])
    assert checkpoint(run)["distill_dynamics"]["teacher"]["precision"] == "bf16-mixed"


def test_validation_images_may_come_and_go(tmp_path, capsys, no_report):
    rng = np.random.default_rng(0)
    for folder in ("photos", "val/a", "val/b"):
        (tmp_path / folder).mkdir(parents=True)
        for i in range(8):
            pixels = rng.integers(0, 256, (30, 30), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / folder / f"{i}.png")
    given = {k: v for k, v in CHANGES.items() if not k.startswith("data")} | of_folder(tmp_path / "photos")
    run = fit_once(tmp_path, **given | {"trainer__max_epochs": 1, "trainer__limit_train_batches": 1})
    given = ["--config", str(run / "config.yaml"), "--ckpt_path", "last", "--data.init_args.val_dir"]
    capsys.readouterr()
    main(["fit", *given, str(tmp_path / "val"), "--trainer.max_epochs", "2"])
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "goes on with" in line]
    _, first, last = rows(run)
    assert "than those of its checkpoint: images None, now " in line
    assert first["teacher/knn1"]
    assert last["val/knn1"]
    assert checkpoint(run, "best")["epoch"] == 1
    capsys.readouterr()
    main(["fit", *given, "null", "--trainer.max_epochs", "3"])
    said = capsys.readouterr()
    (line,) = [line for line in said.err.splitlines() if "goes on with" in line]
    assert line.endswith(", now None; val/* before and after it do not compare")
    assert "the last student is exported" in said.out
    assert "the last student of" in (run / "student" / "README.md").read_text()
