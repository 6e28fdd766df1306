"""`analyze --knn`: the features of any model, measured by labelled images."""

import csv
import json
import re

import numpy as np
import pytest
import timm
import torch
from conftest import refused
from neighbours import knn_by_hand
from PIL import Image

from distill_dynamics.cli.main import main
from distill_dynamics.report import page

DIGITS = {"knn1": 2, "linear1": 2, "effective_rank": 1}
KWARGS = {"img_size": 28, "patch_size": 7, "in_chans": 1, "embed_dim": 24, "depth": 2, "num_heads": 2}
MODEL = "vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    """Class folders of grey images of 28 pixels: 9, 10 and 11 of them."""
    root = tmp_path_factory.mktemp("classes") / "images"
    rng = np.random.default_rng(0)
    for label in range(3):
        (root / f"class_{label}").mkdir(parents=True)
        for i in range(9 + label):
            pixels = np.clip(60 + 50 * label + 40 * rng.normal(size=(28, 28)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / f"class_{label}" / f"{i:02d}.png")
    return root


@pytest.fixture(scope="module")
def splits(classes, tmp_path_factory):
    """The same in two splits: of each class the first seven to train."""
    root = tmp_path_factory.mktemp("splits") / "images"
    for path in sorted(classes.glob("*/*.png")):
        place = root / ("train" if int(path.stem) < 7 else "val") / path.parent.name
        place.mkdir(parents=True, exist_ok=True)
        (place / path.name).write_bytes(path.read_bytes())
    return root


@pytest.fixture
def measured(tmp_path, no_report, capsys):
    def run(folder, *options):
        out = tmp_path / "out"
        given = ["--timm_kwargs", json.dumps(KWARGS), "--n_images", "2", "--num_workers", "0"]
        given += ["--crop_pct", "1"]  # the files are shown as they are
        main(["analyze", "--model", MODEL, "--knn", str(folder), "--out", str(out), *given, *options])
        with (out / "quality.csv").open() as file:
            (row,) = csv.DictReader(file)
        return row, json.loads((out / "analysis.json").read_text())["knn"], capsys.readouterr().out

    return run


def features(paths):
    torch.manual_seed(0)
    model = timm.create_model(MODEL, **KWARGS).eval()
    (mean,), (std,) = ([np.mean(model.pretrained_cfg[name])] for name in ("mean", "std"))
    pixels = np.stack([np.asarray(Image.open(path)) for path in paths])[:, None] / 255
    with torch.no_grad():
        images = torch.tensor((pixels - mean) / std, dtype=torch.float32)
        return model.forward_head(model.forward_features(images), pre_logits=True).double().numpy()


def by_hand(paths, in_bank):
    x, targets = features(paths), np.array([int(path.parent.name[-1]) for path in paths])
    found = knn_by_hand(x[in_bank], targets[in_bank], x[~in_bank], 20, 0.07)
    p = np.linalg.svd(x - x.mean(0), compute_uv=False) ** 2
    p /= p.sum()
    p = p[p > 0]
    return 100 * np.mean(np.array(found) == targets[~in_bank]), np.exp(-(p * np.log(p)).sum())


def test_of_class_folders_the_first_half_of_each_class_classifies_the_second(classes, measured):
    row, facts, printed = measured(classes)
    paths = sorted(classes.glob("*/*.png"))
    sizes = {"class_0": 5, "class_1": 5, "class_2": 6}
    knn1, rank = by_hand(paths, np.array([int(path.stem) < sizes[path.parent.name] for path in paths]))
    assert float(row["knn1"]) == pytest.approx(knn1)
    assert float(row["effective_rank"]) == pytest.approx(rank, rel=1e-3)
    assert 0 <= float(row["linear1"]) <= 100
    assert facts == {"source": str(classes), "bank": 16, "queries": 14, "classes": 3}
    assert "kNN top-1 (%)" in printed
    assert "3 classes, by chance 33.33 %" in printed


def test_the_page_has_what_the_table_has(classes, measured, tmp_path, monkeypatch):
    row, _, _ = measured(classes, "--value_range", "global", "layer")
    monkeypatch.setattr(page, "gallery", lambda study: [])
    text = page.write_report([tmp_path / "out"], tmp_path / "page.html").read_text()
    told = f"16 labelled images of {classes} classify 14 others; 3 classes, by chance 33.33 %</caption>"
    assert text.count(told) == 1  # no range concerns it
    table = text[text.index(told) :]
    cells = re.findall(r"<td>(.*?)</td>", table[: table.index("</table>")])
    assert cells[-3:] == [f"{float(row[name]):.{digits}f}" for name, digits in DIGITS.items()]


def test_train_classifies_val_where_there_are_both(splits, measured):
    row, facts, _ = measured(splits)
    paths = sorted(splits.glob("*/*/*.png"))
    knn1, _ = by_hand(paths, np.array([path.parts[-3] == "train" for path in paths]))
    assert float(row["knn1"]) == pytest.approx(knn1)
    assert facts == {"source": str(splits), "bank": 21, "queries": 9, "classes": 3}


@pytest.mark.parametrize(
    ("take", "words"),
    [
        (lambda classes, splits: "", "--knn: an empty path"),
        (lambda classes, splits: classes / "nothing", "is missing"),
        (lambda classes, splits: classes / "class_0", "holds no class folders"),
        (lambda classes, splits: splits / "train" / "..", "train/ alone"),
        (lambda classes, splits: splits / "one", "1 classes; two classes are needed"),
        (lambda classes, splits: splits / "other", "has a class new, which"),
    ],
)
def test_what_cannot_be_measured_is_one_line(classes, splits, tmp_path, capsys, take, words):
    image = next(classes.glob("*/*.png")).read_bytes()
    root = tmp_path / "made"
    for place in ("one/a", "other/train/a", "other/train/b", "other/val/new", "alone/train/a"):
        (root / place).mkdir(parents=True)
        for i in range(3):
            (root / place / f"{i}.png").write_bytes(image)
    named = {"one": root / "one", "other": root / "other", "..": root / "alone"}
    path = take(classes, splits)
    path = named.get(path.name, path) if path else ""
    given = ["--model", MODEL, "--timm_kwargs", json.dumps(KWARGS), "--out", tmp_path / "out"]
    error = refused(capsys, "analyze", *given, "--knn", path)
    assert words in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
