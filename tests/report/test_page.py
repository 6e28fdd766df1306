import csv
import json
import re
from html.parser import HTMLParser
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest

from distill_dynamics.callbacks import Console
from distill_dynamics.dynamics import Profile
from distill_dynamics.errors import UserError
from distill_dynamics.report import figures
from distill_dynamics.report.page import write_report

VOID = {"meta", "link"}
SIX = [
    "entropy_evolution", "magnitude_evolution", "entropy_heatmap", "student_spectra", "teacher_spectra",
    "training_curves",
]  # fmt: skip
STARTS = [
    {
        "from_epoch": 0,
        "seed": 7,
        "data": {"name": "CIFAR10", "fingerprint": "38f1c0de"},
        "devices": "2 x cuda",
        "command": "distill_dynamics fit --config <b>.yaml",
        "commit": "c1f024bb",
        "versions": {"torch": "2.14.1"},
    }
]
METRICS = [
    {"epoch": 0, "step": 0, "teacher/acc1": 90.456, "teacher/acc5": 99.5},
    {"epoch": 1, "step": 5, "train/loss": 1.5, "train/loss_ce": 2.25, "val/acc1": 70.125, "val/acc5": 95.0},
    {"epoch": 2, "step": 10, "train/loss": 1.25, "train/loss_ce": 2.0, "val/acc1": 84.5, "val/acc5": 97.25},
    {"epoch": 3, "step": 15, "train/loss": 1.0, "train/loss_ce": 1.5, "val/acc1": 83.25, "val/acc5": 98.0},
]


def profile(epoch, entropy, images=4, model="deit", dead=False, mode="global"):
    """Images that differ by less than 0.01 bits: every bend of `entropy` is far above the noise."""
    layers, wobble = len(entropy), np.random.default_rng(0).uniform(-0.005, 0.005, (images, len(entropy)))
    fields = {
        "entropy": entropy,
        "entropy_images": entropy + wobble - wobble.mean(0),
        "magnitude": np.arange(1.0, layers + 1),
        "magnitude_images": np.ones((images, layers)),
        "spectrum": [np.zeros(8) if dead else np.linspace(0.2, 0.1, 8)] * layers,
        "spectrum_se": [np.full(8, 0.01)] * layers,
        "value_range": np.tile([-4.0, 4.0], (layers, 1)),
        "clipped": np.zeros(layers),
        "range_mode": mode,
    }
    names = [f"blocks.{i}" for i in range(layers)]
    return Profile(model=model, epoch=epoch, layers=names, bins=100, **fields)


FALLING, U = np.array([4.4, 4.3, 4.2, 4.1]), np.array([4.4, 4.3, 4.0, 4.25])
TEACHER = np.array([4.5, 4.1, 4.2, 4.3, 4.4, 4.45])


def write_run(folder, metrics=METRICS, starts=STARTS, config="seed_everything: 7\n", **profiles):
    (folder / "dynamics").mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"id": "abc", "starts": starts}))
    if metrics:
        with (folder / "metrics.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(name for row in metrics for name in row)))
            writer.writeheader()
            writer.writerows(metrics)
    if config:
        (folder / "config.yaml").write_text(config)
    for name, content in profiles.items():
        content.save(folder / "dynamics" / f"{name}.npz")
    return folder


def profiles(**changed):
    return {
        "teacher": profile(None, TEACHER, model="cait", **changed),
        "student_epoch_0000": profile(0, FALLING, **changed),
        "student_epoch_0003": profile(3, U, **changed),
        "student_best": profile(2, U, **changed),
    }


class Page(HTMLParser):
    """Fails where an element is closed that is not open, or stays open."""

    def __init__(self, path):
        super().__init__()
        self.text, self.open, self.elements, self.texts, self.rows = path.read_text("utf-8"), [], [], [], []
        self.feed(self.text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs)
        self.elements.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data
        if self.open and self.open[-1] not in ("style", "title"):
            self.texts.append(data)

    def words(self):
        return " ".join(" ".join(self.texts).split())

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def figures(self):
        return re.findall(r'id="(\w+?)-figure_1"', self.text)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return Page(write_report(write_run(tmp_path_factory.mktemp("runs") / "spectral-1", **profiles())))


def test_page_is_well_formed_and_semantic(finished):
    assert finished.text.startswith("<!DOCTYPE html>")
    for tag in ("h1", "title", "main", "details"):
        assert len(finished.all(tag)) == 1
    assert "spectral-1" in finished.texts
    assert finished.all("html") == [{"lang": "en"}]
    assert finished.figures() == SIX
    assert len(finished.all("figure")) == len(finished.all("figcaption")) == len(SIX)
    tables = re.findall(r"<table.*?</table>", finished.text, flags=re.DOTALL)
    assert len(tables) == 3
    for table in map(ElementTree.fromstring, tables):
        assert all(th.get("scope") == "col" for th in table.findall("thead/tr/th"))
        width = len(table.findall("thead/tr/th"))
        for row in table.findall("tbody/tr"):
            assert [cell.tag for cell in row] == ["th"] + ["td"] * (width - 1)
            assert row[0].get("scope") == "row"
    ids = [attributes["id"] for _, attributes in finished.elements if "id" in attributes]
    assert len(set(ids)) == len(ids) > 100


def test_page_needs_nothing_from_elsewhere(finished):
    assert not finished.all("script")
    for tag, attributes in finished.elements:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "xlink:href", "srcset", "action", "data", "poster"):
                assert value.startswith(("#", "data:")), (tag, value)
            elif not name.startswith("xmlns"):
                assert "//" not in value, (tag, name)
    assert "@import" not in finished.text
    assert not re.search(r"url\((?!#)", finished.text)
    references = set(re.findall(r'(?:href="#|url\(#)([^")]+)', finished.text))
    assert references <= {attributes.get("id") for _, attributes in finished.elements}


def test_every_picture_says_what_it_shows(finished):
    for attributes in finished.all("svg"):
        assert attributes["role"] == "img"
    labels = [attributes["aria-label"] for attributes in finished.all("svg")]
    assert "teacher: first 4.5, lowest 4.1 at block 2, last 4.45" in labels[0]
    assert "student, epoch 0: first 1, lowest 1 at block 1, last 4" in labels[1]
    assert len(set(labels)) == len(SIX)


def test_numbers_are_those_of_the_run(finished):
    assert ["teacher", "90.46", "99.50", ""] in finished.rows
    assert ["student, best", "84.50", "97.25", "2"] in finished.rows
    assert ["student, last", "83.25", "98.00", "3"] in finished.rows
    text = finished.words()
    assert "reaches 84.50 % top-1 at its best, epoch 2, and 83.25 % at its last, epoch 3." in text
    assert "The teacher has 90.46 % top-1. The best student is 5.96 points below the teacher." in text
    assert "Entropy of the best student (epoch 2) is lowest at block 3 of 4: a U, 0.250 ±" in text
    assert "Entropy of the teacher is lowest at block 2 of 6: a U, 0.350 ±" in text
    shapes = {
        row[0]: (row[1].split(" ")[0], row[2].split(" ")[0], row[-1])
        for row in finished.rows
        if "±" in row[1]
    }
    assert shapes["teacher"] == ("2", "0.350", "U")
    assert shapes["student, epoch 0"] == ("4", "0.000", "no U")
    assert shapes["student, epoch 3"] == shapes["student, best (epoch 2)"] == ("3", "0.250", "U")
    for row in (["seed", "7"], ["data: fingerprint", "38f1c0de"], ["versions: torch", "2.14.1"]):
        assert row in finished.rows
    assert "distill_dynamics fit --config <b>.yaml" in finished.words()
    assert "seed_everything: 7" in text
    assert "there is no" not in text


@pytest.mark.parametrize(("top1", "said"), [(95.0, "4.54 points above"), (90.456, "level with")])
def test_a_student_at_or_above_its_teacher(tmp_path, top1, said):
    rows = [METRICS[0], {**METRICS[1], "val/acc1": top1}]
    text = Page(write_report(write_run(tmp_path / "r", rows))).words()
    assert f"{top1:.2f} % top-1 at its best, epoch 1, its last." in text
    assert f"The best student is {said} the teacher." in text


@pytest.mark.parametrize(("mode", "there"), [("global", True), ("layer", False)])
def test_caution_stands_where_bins_are_global(tmp_path, monkeypatch, mode, there):
    monkeypatch.setattr(figures, "of_run", lambda *_: {})
    monkeypatch.setattr(figures, "spectra", lambda *_: figures.Figure())
    text = Page(write_report(write_run(tmp_path / "r", **profiles(mode=mode)))).words()
    assert ("not independent witnesses" in text) is there
    assert "other images, not with another training" in text


def test_unfinished_run_shows_what_there_is_and_names_what_there_is_not(tmp_path):
    some = {
        name: content for name, content in profiles().items() if name in ("teacher", "student_epoch_0000")
    }
    rows = [METRICS[0], {"epoch": 1, "step": 5, "train/loss": 1.5, "train/loss_ce": 2.25}]
    page = Page(write_report(write_run(tmp_path / "r", rows, **some)))
    text = page.words()
    assert "there is no dynamics/student_best.npz" in text
    assert "metrics.csv has no val/acc1" in text
    assert "Entropy of the last probed student (epoch 0) is lowest at block 4 of 4: no U." in text
    assert "The student reaches" not in text
    assert page.figures() == SIX


def test_run_that_has_not_begun(tmp_path):
    page = Page(write_report(write_run(tmp_path / "r", None, [], "")))
    text = page.words()
    for said in ("Nothing has been measured yet.", "run.json records no start", "there is no config.yaml"):
        assert said in text
    assert not page.all("svg")
    assert not page.all("table")


def test_run_without_a_teacher(tmp_path):
    rows = [{name: value for name, value in row.items() if "teacher" not in name} for row in METRICS]
    students = {name: content for name, content in profiles().items() if name != "teacher"}
    page = Page(write_report(write_run(tmp_path / "r", rows, **students)))
    text = page.words()
    assert "metrics.csv has no teacher/acc1" in text
    assert "there is no dynamics/teacher.npz" in text
    assert "points" not in text
    assert "Entropy of the teacher" not in text
    assert page.figures() == [name for name in SIX if name != "teacher_spectra"]


def test_dead_layers_one_image_and_a_diverged_loss_do_not_cost_the_page(tmp_path):
    rows = [*METRICS, {"epoch": 4, "step": 20, "train/loss": "nan", "train/loss_ce": "inf", "val/acc1": 10.0}]
    page = Page(write_report(write_run(tmp_path / "r", rows, **profiles(dead=True, images=1))))
    assert page.figures() == [name for name in SIX if "spectra" not in name]
    assert "lowest at block 3 of 4: one image is too few to tell" in page.words()
    assert ["student, best (epoch 2)", "3", "0.250", "unknown: one image"] in page.rows
    assert ["student, last", "10.00", "–", "4"] in page.rows
    assert not re.search(r"\bnan\b", page.words())


def test_resumed_run_has_a_column_a_start_and_an_old_best_profile_is_named(tmp_path):
    starts = [*STARTS, {**STARTS[0], "from_epoch": 2, "commit": None, "images_a_step": 64}]
    rows = [*METRICS, {**METRICS[-1], "epoch": 4, "val/acc1": 85.0}]
    page = Page(write_report(write_run(tmp_path / "r", rows, starts, student_best=profile(2, U))))
    assert ["fact", "start 1", "start 2"] in page.rows
    assert ["from epoch", "0", "2"] in page.rows
    assert ["commit", "c1f024bb", "–"] in page.rows
    assert ["images a step", "–", "64"] in page.rows
    assert "The Profile of the best student is of epoch 2, the best now is epoch 4" in page.words()


def test_everything_is_escaped_and_pure_ascii(tmp_path):
    evil = '<b>x</b>"&--><script>alert(1)</script>'
    student = profile(0, FALLING, model=evil)
    folder = tmp_path / "<b>x & é"
    path = write_report(
        write_run(
            folder, METRICS, [{"command": evil, evil: evil}], f"name: {evil}", student_epoch_0000=student
        )
    )
    assert path.read_bytes().isascii()
    page = Page(path)
    assert not page.all("b")
    assert not page.all("script")
    assert "<b>x & é" in page.texts
    assert [evil, evil] in page.rows
    assert f"name: {evil}" in page.words()


def test_equal_runs_give_equal_pages_and_only_the_page_is_written(finished, tmp_path):
    run_dir = write_run(tmp_path / "spectral-1", **profiles())
    before = sorted(run_dir.rglob("*"))
    assert write_report(run_dir).read_text() == finished.text
    assert sorted(run_dir.rglob("*")) == sorted([*before, run_dir / "report.html"])


def test_fit_writes_the_page_at_its_end_and_prints_its_tables(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(figures, "of_run", lambda *_: {})
    run_dir = write_run(tmp_path / "r", **profiles())
    Console().on_fit_end(SimpleNamespace(default_root_dir=str(run_dir)), None)
    page = Page(run_dir / "report.html")
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    tables = [row for row in page.rows if len(row) == 4]
    assert len(tables) == 4 + 5
    for row in tables:
        assert " ".join(row).split() in printed
    assert "report.html" in [line[0] for line in printed if line]


def test_no_run_directory_is_one_clear_line(tmp_path):
    with pytest.raises(UserError, match="not a run directory") as caught:
        write_report(tmp_path)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
