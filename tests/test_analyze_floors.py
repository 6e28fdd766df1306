"""`analyze --student_width`: what narrower students could hold, before any training."""

import csv

import numpy as np
import pytest
from conftest import ROOT

from distill_dynamics.cli.main import main
from distill_dynamics.data.fashion_mnist import DEBIAN
from distill_dynamics.dynamics import Profile
from distill_dynamics.report.gallery import gallery
from distill_dynamics.report.runs import load_runs
from distill_dynamics.report.study import Study

SMALL = ["--timm_kwargs", "{img_size: 28, patch_size: 7, in_chans: 1, embed_dim: 24, depth: 3, num_heads: 2}"]


def analyze(out, *options, model="deit_tiny_patch16_224"):
    main(["analyze", "--model", model, "--out", str(out), *options])


def rows(out):
    with (out / "floors.csv").open() as file:
        return [*csv.DictReader(file)]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    out = tmp_path_factory.mktemp("floors") / "out"
    ranges = ["--value_range", "global", "layer"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("distill_dynamics.analysis.analyze.write_report", lambda *args: None)
        analyze(out, *SMALL, "--n_images", "20", "--student_width", "12", "4", "4", *ranges)
    return out


def test_every_block_has_a_row_at_each_width(done):
    found = rows(done)
    assert [(row["student_width"], row["block"]) for row in found] == [
        (width, block) for width in ("12", "4") for block in "123"
    ]
    assert {(row["label"], row["channels"], row["images"]) for row in found} == {
        ("deit_tiny_patch16_224", "24", "20")
    }
    by_width = np.array([float(row["capacity_floor"]) for row in found]).reshape(2, 3)
    assert (by_width[0] < by_width[1]).all()  # the wider holds more


def test_profiles_hold_what_the_table_says(done):
    folder = done / "profiles" / "deit_tiny_patch16_224" / "global"
    assert sorted(path.name for path in folder.iterdir()) == ["model.npz", "model_width_4.npz"]
    for name, width, some in (("model", 12, rows(done)[:3]), ("model_width_4", 4, rows(done)[3:])):
        profile = Profile.load(folder / f"{name}.npz")
        assert profile.student_width == width
        for curve in ("capacity_floor", "correlation_floor"):
            assert profile.curve(curve) == pytest.approx([float(row[curve]) for row in some])


def test_the_report_draws_each_width_once(done):
    runs = load_runs([done])
    assert {run.range: [p.student_width for p in run.widths] for run in runs} == {"global": [4], "layer": [4]}
    (picture,) = [p for p in gallery(Study(runs)) if p.name == "floors_by_block"]
    (ax,) = picture.figure.axes
    labels = [line.meta.label.removeprefix("deit_tiny_patch16_224, ") for line in ax.lines]
    assert labels == [f"{k} channels: {what} floor" for k in (12, 4) for what in ("capacity", "correlation")]
    assert ax.get_ylim()[0] == 0


@pytest.mark.parametrize(
    ("width", "message"),
    [
        (["0"], "error: --student_width: a student has 1 channel or more, not 0"),
        (["4", "-1"], "error: --student_width: a student has 1 channel or more, not -1"),
        (["25"], "error: --student_width: 25 is above the 24 channels of deit_tiny_patch16_224"),
        (["4", "--n_images", "1"], "error: --student_width needs 2 images or more"),
    ],
)
def test_a_width_that_cannot_be_is_one_line(tmp_path, capsys, width, message):
    with pytest.raises(SystemExit):
        analyze(tmp_path / "out", *SMALL, "--student_width", *width)
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-1].startswith(message)
    assert sum(line.startswith("error:") for line in said) == 1
    assert not (tmp_path / "out").exists()


def test_what_few_images_do_not_tell_is_said(tmp_path, capsys, no_report):
    small = ["--image_size", "32", "--timm_kwargs", "{in_chans: 1}", "--n_images", "12"]
    analyze(tmp_path / "out", *small, "--student_width", "8", model="resnet10t")
    said = capsys.readouterr().out
    assert "8 channels: not known of layer4, of which half of the images has too few tokens" in said
    assert [bool(row["capacity_floor"]) for row in rows(tmp_path / "out")] == [True, True, True, True, False]


@pytest.mark.slow
@pytest.mark.skipif(not DEBIAN.exists(), reason="needs Fashion-MNIST")
def test_the_studys_teacher_holds_what_was_measured_by_hand(tmp_path, capsys, no_report):
    """A script of numpy and torch, the first 500 validation images on the next 500: 32 and 16 channels."""
    weights = ROOT / "notebooks" / "study" / "teachers" / "cait24.safetensors"
    options = ["--data", str(ROOT / "configs" / "fashion_mnist" / "base.yaml"), "--n_images", "1000"]
    options += ["--checkpoint", str(weights), "--student_width", "32", "16"]
    analyze(tmp_path / "out", *options, model="cait_s24_224")
    found = {(row["student_width"], row["block"]): row for row in rows(tmp_path / "out")}
    for (width, block), (capacity, correlation) in {
        ("32", "1"): (0.009, 0.011),
        ("32", "24"): (0.052, 0.058),
        ("16", "1"): (0.06, None),
        ("16", "24"): (0.20, None),
    }.items():
        assert float(found[width, block]["capacity_floor"]) == pytest.approx(capacity, abs=0.005)
        if correlation:
            assert float(found[width, block]["correlation_floor"]) == pytest.approx(correlation, abs=0.005)
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  24 ")]
    assert len(table) == 1
    assert len(table[0]) <= 80
