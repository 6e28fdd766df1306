"""`predict --images`: unlabelled files, by name; against the student's folder in plain timm."""

import csv
import os
import shutil
from pathlib import Path

import pytest
import timm
import torch
import yaml
from conftest import fit_once, refused
from PIL import Image
from scripts.make_images import make

from distill_dynamics.cli.main import main
from distill_dynamics.cli.predictions import written_at_the_end

VIT = {"img_size": 32, "patch_size": 16, "embed_dim": 16, "depth": 2, "num_heads": 2}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Seven classes at 32 px, trained for an epoch."""
    root = make(tmp_path_factory.mktemp("predict") / "images", classes=7, train=3, val=1)
    small = {"data_dir": str(root), "image_size": 32, "batch_size": 7, "num_workers": 0}
    return fit_once(
        root.parent,
        model={"student": {"name": "deit_tiny_patch16_224", "timm_kwargs": VIT}},
        data={"class_path": "distill_dynamics.data.ImageFolder", "init_args": small},
        probe__every_n_epochs=0,
    )


@pytest.fixture
def photos(run, tmp_path, monkeypatch):
    """Files in folders of any depth, some of which are none."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run.parent / "images" / "val" / "stripes_03", "photos/a/b")
    shutil.copy(run.parent / "images" / "val" / "stripes_05" / "000.jpg", "photos/zürich, 1.JPG")
    Path("photos/notes.txt").write_text("no image")
    return Path("photos")


def predict(run, *options):
    main(["predict", "--config", str(run / "config.yaml"), "--ckpt_path", "best", *options])
    with open("predictions.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_top_5_of_each_file_are_those_of_timm(run, photos):
    rows = predict(run, "--images", "photos")
    assert [row["image"] for row in rows] == ["a/b/000.jpg", "zürich, 1.JPG"]
    model = timm.create_model(f"local-dir:{run / 'student'}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    names = model.pretrained_cfg["label_names"]
    for row in rows:
        with torch.no_grad(), Image.open(photos / row["image"]) as image:
            shares, numbers = model(transform(image.convert("RGB"))[None]).softmax(1)[0].topk(5)
        assert [row[f"class_{k}"] for k in range(1, 6)] == [names[number] for number in numbers]
        found = torch.tensor([float(row[f"probability_{k}"]) for k in range(1, 6)])
        torch.testing.assert_close(found, shares, atol=2e-4, rtol=0)


def test_the_data_it_was_trained_on_need_not_be_here(run, photos, tmp_path):
    assert predict(run, "--images", "photos", "--data.data_dir", str(tmp_path / "gone"))


def test_the_names_are_those_of_the_student_whatever_the_config_is(run, photos, tmp_path):
    """The config's data have other names."""
    names = {row["class_1"] for row in predict(run, "--images", "photos")}
    other = make(tmp_path / "other", classes=7, train=1, val=1)
    for split in ("train", "val"):
        for folder in (other / split).iterdir():
            folder.rename(folder.with_name(f"other_{folder.name}"))
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"]["init_args"]["data_dir"] = str(other)
    Path("other.yaml").write_text(yaml.safe_dump(config))
    best, folder = run / "checkpoints" / "best.ckpt", run / "student"
    for words in (["--ckpt_path", best], ["--model.student.checkpoint", folder]):
        main(["predict", "--config", "other.yaml", "--images", "photos", *map(str, words)])
        with open("predictions.csv", newline="") as file:
            assert {row["class_1"] for row in csv.DictReader(file)} == names, words


def test_an_unreadable_file_is_a_line_or_left_out(run, photos, capsys):
    predict(run, "--images", "photos")
    before = Path("predictions.csv").read_bytes()
    (photos / "broken.jpg").write_bytes((photos / "a/b/000.jpg").read_bytes()[:500])
    words = ["--config", run / "config.yaml", "--ckpt_path", "best", "--images", "photos"]
    line = refused(capsys, "predict", *words)
    assert "error: unreadable image photos/broken.jpg" in line
    assert Path("predictions.csv").read_bytes() == before  # the old file, whole
    with pytest.warns(UserWarning, match=r"left out unreadable image photos/broken\.jpg"):
        rows = predict(run, "--images", "photos", "--data.skip_unreadable", "true")
    assert [row["image"] for row in rows] == ["a/b/000.jpg", "zürich, 1.JPG"]
    assert "2 predictions in predictions.csv, 1 image left out" in capsys.readouterr().out
    alone = ["--data.skip_unreadable", "true", "--data.eval_batch_size", "1"]
    with pytest.warns(UserWarning, match=r"left out unreadable image photos/broken\.jpg"):
        assert predict(run, "--images", "photos", *alone) == rows


def test_a_name_that_is_no_utf_8_is_written_as_it_is(run, photos):
    name = b"\xe9t\xe9.jpg"
    shutil.copy(photos / "a/b/000.jpg", os.fsdecode(bytes(photos) + b"/" + name))
    words = ["--config", str(run / "config.yaml"), "--ckpt_path", "best", "--images", "photos"]
    main(["predict", *words])
    assert b"\n" + name + b"," in Path("predictions.csv").read_bytes()


def test_a_pipe_gets_the_rows(tmp_path):
    """As /dev/stdout does: a link to a pipe without a path."""
    reads, writes = os.pipe()
    with written_at_the_end(Path(f"/dev/fd/{writes}")) as file:
        file.write("rows")
    os.close(writes)
    assert os.read(reads, 10) == b"rows"
    os.close(reads)


@pytest.mark.parametrize(
    ("words", "right"),
    [
        (["--ckpt_path", "best", "--images", "nowhere"], "--images: there is no folder nowhere"),
        (["--ckpt_path", "best", "--images", "empty"], "--images: empty holds no images"),
        (["--images", "photos"], "the student has no weights: give --ckpt_path best"),
    ],
)
def test_a_mistake_is_a_line(run, photos, capsys, words, right):
    Path("empty").mkdir()
    line = refused(capsys, "predict", "--config", run / "config.yaml", *words)
    assert right in line
    assert line.strip().splitlines()[-1].startswith("error: ")
    assert not Path("predictions.csv").exists()


def test_grey_models_take_files_in_colour(tmp_path, photos):
    run = fit_once(tmp_path, model__teacher=None, model__terms=None, probe__every_n_epochs=0)
    rows = predict(run, "--images", "photos")

    assert len(rows) == 2
