import base64
import hashlib
import json
import re
import struct
import zlib
from html.parser import HTMLParser
from itertools import pairwise
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
from made import (
    FALLING,
    TEACHER,
    U,
    all_profiles,
    config,
    metrics,
    profile,
    start,
    term,
    write_analysis,
    write_page,
    write_published,
    write_run,
)
from matplotlib.colors import to_hex

from distill_dynamics import figures
from distill_dynamics.cli.fit_summary import end
from distill_dynamics.errors import UserError
from distill_dynamics.report import page as page_module
from distill_dynamics.report.gallery import gallery
from distill_dynamics.report.page import write_report
from distill_dynamics.report.provenance import PAPER
from distill_dynamics.report.runs import load_runs
from distill_dynamics.report.study import Study
from distill_dynamics.report.svg import draw

VOID = {"meta", "link", "input"}
ALONE = [
    "entropy_evolution", "magnitude_evolution", "entropy_heatmap", "training_curves", "signature_by_epoch",
    "teacher_spectra", "student_spectra",
]  # fmt: skip
TOGETHER = [
    "entropy_by_block", "magnitude_by_block", "entropy_by_method", "magnitude_by_method", "entropy_heatmap",
    "signature_by_epoch", "training_curves", "teacher_spectra", "spectra_softkd", "spectra_spectral-last",
]  # fmt: skip


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
        if self.open and {"td", "th"} & {*self.open[-2:]}:  # a cell, or a span in it
            self.rows[-1][-1] += data
        if self.open and self.open[-1] not in ("style", "title", "script"):
            self.texts.append(data)

    def words(self):
        return " ".join(" ".join(self.texts).split())

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def figures(self):
        return [attributes["id"] for attributes in self.all("figure")]

    def curves(self, figure):
        """What page.js gets to know about the curves of a figure."""
        own = self.text[self.text.index(f'<figure id="{figure}"') :]
        return json.loads(re.search(r'<script type="application/json">(.*?)</script>', own)[1])


def report(tmp_path, *paths, **options):
    return Page(write_page(tmp_path / "report.html", *paths, **options))


def pictures(*paths):
    """Names of the figures that the page of these runs has."""
    return [picture.name for picture in gallery(Study(load_runs(paths)))]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return report(root, write_run(root / "spectral-1", **all_profiles()))


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    last = config({"spectral": term(last=1)})
    runs = [
        write_run(root / "softkd", **all_profiles()),
        write_run(root / "spectral-last", conf=last, starts=[start(ended=None)], **all_profiles(0.3)),
    ]
    return report(root, *runs)


@pytest.mark.parametrize("which", ["one", "several"])
def test_page_is_well_formed_and_semantic(finished, several, which):
    page, names = (finished, ALONE) if which == "one" else (several, TOGETHER)
    assert page.text.startswith("<!DOCTYPE html>")
    for tag in ("h1", "title", "main", "header", "nav"):
        assert len(page.all(tag)) == 1
    assert page.all("html") == [{"lang": "en"}]
    assert page.figures() == names
    assert len(page.all("svg")) == len(page.all("figcaption")) == len(names)
    headings = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(headings))
    tables = re.findall(r"<table.*?</table>", page.text, flags=re.DOTALL)
    assert len(tables) > 8
    for table in map(ElementTree.fromstring, tables):
        assert table.find("caption").text
        width = len(table.find("thead/tr"))
        assert all(th.get("scope") == "col" for th in table.findall("thead/tr/th"))
        for row in table.findall("tbody/tr"):
            assert [cell.tag for cell in row] == ["th"] + ["td"] * (width - 1)
            assert row[0].get("scope") == "row"
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(set(ids)) == len(ids) > 100
    for anchor in page.all("a"):
        assert anchor["href"][1:] in ids or anchor == {"href": PAPER, "rel": "noreferrer"}
    for section in page.all("section"):
        assert section["aria-labelledby"] in ids


def test_page_needs_nothing_from_elsewhere(several):
    for tag, attributes in several.elements:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if (tag, name, value) == ("a", "href", PAPER):
                continue  # asked for by a reader alone
            if name in ("src", "href", "xlink:href", "srcset", "action", "data", "poster"):
                assert value.startswith(("#", "data:")), (tag, value)
            elif not name.startswith("xmlns"):
                assert "//" not in (value or ""), (tag, name)
    assert "@import" not in several.text
    assert not re.search(r"url\((?!#)", several.text)
    references = set(re.findall(r'(?:href="#|url\(#)([^")]+)', several.text))
    assert references <= {attributes.get("id") for _, attributes in several.elements}


def test_policy_allows_the_one_script_by_its_hash(finished):
    (policy,) = [
        meta["content"]
        for meta in finished.all("meta")
        if meta.get("http-equiv") == "Content-Security-Policy"
    ]
    (script,) = re.findall(r"<script>(.*?)</script>", finished.text, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.startswith("default-src 'none';")
    assert f"script-src 'sha256-{digest}'" in policy
    assert "unsafe-eval" not in policy
    assert {element.get("type") for element in finished.all("script")} == {None, "application/json"}


def test_every_picture_says_what_it_shows(finished):
    for attributes in finished.all("svg"):
        assert attributes["role"] == "img"
    labels = [attributes["aria-label"] for attributes in finished.all("svg")]
    assert "teacher: block 1 4.5 ± " in labels[0]
    assert "epoch 0: block 1 4.4 ± " in labels[0]
    assert len(set(labels)) == len(ALONE)


def test_curves_are_the_profiles_numbers_with_their_errors(finished):
    drawn = {(c["role"], c["epoch"]): c for c in finished.curves("entropy_evolution")}
    made = all_profiles()
    assert set(drawn) == {("student", 0), ("student", 3), ("best", 2), ("teacher", None)}
    for key, name in ((("student", 3), "student_epoch_0003"), (("teacher", None), "teacher")):
        curve, expected = drawn[key], made[name]
        errors = expected.entropy_images.std(axis=0, ddof=1) / 2  # four images
        assert [point[2] for point in curve["points"]] == [f"block {n + 1}" for n in range(len(errors))]
        assert [point[3] for point in curve["points"]] == [
            f"{value:.5g} ± {error:.2g}" for value, error in zip(expected.entropy, errors, strict=True)
        ]
        for name in curve["ids"]:
            assert finished.text.count(f'id="{name}"') == 1
    # The same, as a table.
    assert any(row[:2] == ["epoch 3", drawn["student", 3]["points"][0][3]] for row in finished.rows)


def test_numbers_are_those_of_the_run(finished):
    assert ["teacher", "90.00", "99.50", ""] in finished.rows
    assert ["student, best", "80.00", "97.00", "2"] in finished.rows
    assert ["student, last", "79.00", "98.00", "3"] in finished.rows
    header = ["entropy by block", "lowest block", "fall (bits)", "rise (bits)", "shape", "magnitude"]
    first = finished.rows.index(header) + 1
    shapes = {row[0]: [cell.split(" ±")[0] for cell in row[1:]] for row in finished.rows[first : first + 4]}
    assert shapes["teacher"] == ["2", "0.400", "0.350", "U", "lowest at 1"]
    assert shapes["student, epoch 0"] == ["4", "0.300", "0.000", "no U", "lowest at 1"]
    assert shapes["student, epoch 3"] == ["3", "0.400", "0.250", "U", "lowest at 1"]
    assert shapes["student, best (epoch 2)"] == shapes["student, epoch 3"]
    for row in (["seed", "0"], ["data: fingerprint", "d1"], ["versions: torch", "2.14.1"]):
        assert row in finished.rows
    text = finished.words()
    assert "distill_dynamics fit --config <b>.yaml" in text
    assert "seed_everything: 0" in text
    assert "Warnings" not in text


def test_findings_come_first_then_warnings_results_figures_numbers(several):
    order = re.findall(r"<h2 id=\"(\w+)\"", several.text)
    assert order == ["findings", "results", "figures", "numbers", "spectra", "differences", "provenance"]
    assert several.text.index("<h3>Warnings</h3>") < several.text.index('id="results"')
    text = several.words()
    assert "spectral-last: Not ended: the run is still going, or was killed" in text
    assert "softkd: Not ended" not in text
    # Table 1, and the setting in which they differ.
    assert any("SpectralKD" in row[0] and row[1:3] == ["L 1", "0.2"] for row in several.rows)
    assert any(row[0].endswith("weight") and row[1:] == ["–", "0.2"] for row in several.rows)


def test_names_are_in_words_and_a_figure_has_one_title(finished, tmp_path):
    assert not re.search(r"\b(train|val|dynamics)/\w", finished.words())
    titles = re.findall(r"<figure id=.*?<h3>(.*?)</h3>", finished.text, flags=re.DOTALL)
    assert len(titles) == len(set(titles)) == len(ALONE)
    run = write_run(tmp_path / "r", **all_profiles())
    (drawn,) = [
        picture for picture in gallery(Study(load_runs([run]))) if picture.name == "entropy_evolution"
    ]
    drawn.figure.savefig(tmp_path / "file.svg")  # as in the files for print
    assert 'id="title"' in (tmp_path / "file.svg").read_text()
    assert "-title" not in draw(drawn.figure, drawn.name).svg


def test_boxes_are_hidden_until_the_script_shows_them(several, finished):
    (controls,) = [attributes for attributes in several.all("details") if attributes.get("id") == "controls"]
    assert "hidden" in controls
    boxes = [(box["name"], box["value"]) for box in several.all("input")]
    assert boxes == [
        ("run", "softkd"), ("run", "spectral-last"), ("epoch", "0"), ("epoch", "3"),
        ("role", "best"), ("role", "teacher"),
    ]  # fmt: skip
    assert all("checked" in box for box in several.all("input"))
    assert "run" not in {box["name"] for box in finished.all("input")}


def test_figures_are_written_for_print(tmp_path):
    folder, some = tmp_path / "figures", ["entropy_by_block", "teacher_spectra"]
    runs = [write_run(tmp_path / name, **all_profiles()) for name in "ab"]
    report(tmp_path, *runs, only=some, figures_dir=folder)
    assert {path.name for path in folder.iterdir()} == {
        f"{n}.{kind}" for n in some for kind in ("png", "pdf")
    }
    png = (folder / "entropy_by_block.png").read_bytes()
    width, _ = struct.unpack(">II", png[16:24])
    assert width == round(4.6 * 300)
    pdf = (folder / "entropy_by_block.pdf").read_bytes()
    assert pdf.startswith(b"%PDF")
    assert b"/Type /Font /Subtype /Type0" in pdf or b"/CIDFontType2" in pdf  # fonttype 42: text is text
    assert b"CreationDate" not in pdf
    streams = re.findall(rb"stream\r?\n(.*?)\r?\nendstream", pdf, flags=re.DOTALL)
    drawn = b"".join(_inflated(stream) for stream in streams)
    assert b"BT" in drawn


def _inflated(stream):
    try:
        return zlib.decompress(stream)
    except zlib.error:
        return stream


def test_value_ranges_are_never_drawn_in_one_panel(tmp_path):
    entropy = np.array([4.4, 4.3, 4.0, 4.25, 4.3])
    curves = [
        ("deit", "global", None, False, profile(None, entropy)),
        ("deit", "layer", None, False, profile(None, entropy + 1, range_mode="layer")),
        ("cait", "global", None, False, profile(None, entropy + 0.1)),
        ("cait", "layer", None, False, profile(None, entropy, range_mode="layer")),
    ]
    analysis = write_analysis(tmp_path / "out", curves)
    assert pictures(analysis) == ["entropy_by_range", "spectra_deit", "spectra_cait"]
    page = report(tmp_path, analysis, only=["entropy_by_range"])
    panels = {}
    for curve in page.curves("entropy_by_range"):
        panels.setdefault(curve["panel"], []).append((curve["label"], curve["points"][0][3].split(" ")[0]))
    one, two, magnitude = panels.values()
    assert one == [("deit", "4.4"), ("cait", "4.5")]
    assert two == [("deit", "5.4"), ("cait", "4.4")]
    assert len(magnitude) == 2
    assert "a layer's entropy holds log2 of its scale" in page.words()
    # A model has one box, for its curves in all panels.
    assert [box["value"] for box in page.all("input")] == ["deit", "cait"]
    # What does not depend on the range is there once: the spectra's rows, and how the analysis was made.
    names = [row[0] for row in page.rows]
    assert [names.count(name) for name in ("deit", "cait", "deit (layer)", "command")] == [1 + 4, 1 + 4, 1, 1]
    assert "every probe" not in page.words()


def test_an_analysed_model_and_a_run_of_one_name_are_two(tmp_path):
    curves = [
        ("deit", "global", None, False, profile(None, U)),
        ("deit", "layer", None, False, profile(None, U + 1, range_mode="layer")),
    ]
    analysis = write_analysis(tmp_path / "out", curves)
    run = write_run(tmp_path / "deit", **all_profiles())
    page = report(tmp_path, analysis, run, only=["entropy_by_range"])
    drawn = [c["run"] for c in page.curves("entropy_by_range") if c["measure"] == "entropy"]
    assert drawn.count("out/deit") == 2
    assert sorted(set(drawn)) == sorted(["out/deit", f"{tmp_path.name}/deit"])


def test_a_run_looks_the_same_in_all_figures_whatever_stands_before_it(tmp_path):
    curves = {"checkpoint_epoch_30": FALLING - 2, "checkpoint_epoch_60": U - 2}
    paths = [write_published(tmp_path / "csv" / f"{name}.csv", curves) for name in ("Soft", "Last")]
    paths += [
        write_run(tmp_path / "mine", **all_profiles()),
        write_run(tmp_path / "again", conf=config(seed=1), starts=[start(1)], **all_profiles(0.1)),
    ]
    looks = {}
    for picture in gallery(Study(load_runs(paths))):
        if picture.name in (
            "entropy_by_block",
            "magnitude_by_block",
            "signature_by_epoch",
            "training_curves",
        ):
            for ax in picture.figure.axes:
                for line in [line for line in ax.lines if getattr(line, "meta", None) and line.meta.run]:
                    look = (to_hex(line.get_color()), line.get_linestyle(), line.get_marker())
                    looks.setdefault(line.meta.run, set()).add(look)
    assert set(looks) == {"Soft", "Last", "mine", "again"}
    assert all(len(found) == 1 for found in looks.values())
    colours = {name: next(iter(found))[0] for name, found in looks.items()}
    assert colours["mine"] == colours["again"]  # seeds of one method
    assert len(set(colours.values())) == 3


def test_seeds_share_a_panel_and_what_does_not_depend_on_the_range_is_drawn_once(tmp_path):
    runs = [
        write_run(
            tmp_path / f"soft-{seed}", conf=config(seed=seed), starts=[start(seed)], **all_profiles(seed)
        )
        for seed in (0, 1)
    ]
    last = config({"s": term(last=1)})
    runs.append(write_run(tmp_path / "last", conf=last, **all_profiles()))
    page = report(tmp_path, *runs, only=["entropy_by_method"])
    panels = dict.fromkeys(curve["panel"] for curve in page.curves("entropy_by_method"))
    assert [*panels] == ["SoftKD, 2 runs", "last", "Teacher (cait)"]
    boxes = [box["value"] for box in page.all("input") if box["name"] == "run"]
    assert boxes == ["soft-0", "soft-1", "last"]
    curves = [
        ("deit", value_range, epoch, False, profile(epoch, U, range_mode=value_range))
        for value_range in ("global", "layer")
        for epoch in (1, 2)
    ]
    assert pictures(write_analysis(tmp_path / "out", curves)) == [
        "entropy_by_range", "entropy_by_method_global", "entropy_by_method_layer", "magnitude_by_method",
        "entropy_heatmap_global", "signature_by_epoch_global", "entropy_heatmap_layer",
        "signature_by_epoch_layer", "spectra_deit",
    ]  # fmt: skip


def test_published_curves_stand_beside_a_run(tmp_path):
    curves = {"checkpoint_epoch_30": FALLING - 2, "checkpoint_epoch_60": U - 2, "model_best": U - 2.1}
    csv = write_published(tmp_path / "published" / "SoftKD.csv", curves)
    paths = csv, write_run(tmp_path / "mine", **all_profiles())
    page = report(tmp_path, *paths, only=["entropy_by_block", "magnitude_by_method"])
    assert [c["run"] for c in page.curves("entropy_by_block")] == ["SoftKD", "mine", None]
    assert {c["run"] for c in page.curves("magnitude_by_method") if c["role"] == "student"} == {"mine"}
    assert "spectra_SoftKD" not in pictures(*paths)
    assert "nan" not in page.words().lower().split()
    assert pictures(csv) == ["entropy_evolution", "entropy_heatmap", "signature_by_epoch"]
    alone = report(tmp_path, csv, only=["entropy_evolution"])
    assert [c["role"] for c in alone.curves("entropy_evolution")] == ["student", "student", "best"]


def test_run_names_that_would_clash_as_file_names_do_not(tmp_path):
    runs = [write_run(tmp_path / name, **all_profiles()) for name in ("a b", "a-b")]
    page = report(tmp_path, *runs, only=["spectra_a-b", "spectra_a-b-2"])
    owners = {name: {c["run"] for c in page.curves(name)} for name in ("spectra_a-b", "spectra_a-b-2")}
    assert owners == {"spectra_a-b": {"a b"}, "spectra_a-b-2": {"a-b"}}


@pytest.mark.parametrize(("mode", "there"), [("global", True), ("layer", False)])
def test_caution_stands_where_bins_are_global(tmp_path, mode, there):
    run = write_run(tmp_path / "r", **all_profiles(range_mode=mode))
    text = report(tmp_path, run, only=[]).words()
    assert ("not independent witnesses" in text) is there
    assert "other images, not with another training" in text


def test_unfinished_run_shows_what_there_is_and_names_what_there_is_not(tmp_path):
    some = {
        name: content for name, content in all_profiles().items() if name in ("teacher", "student_epoch_0000")
    }
    rows = [*metrics(), {"epoch": 1, "step": 5, "train/loss": 1.5, "train/loss_ce": 2.25}]
    run = write_run(tmp_path / "r", rows, **some)
    text = report(tmp_path, run, only=[]).words()
    assert "there is no dynamics/student_best.npz" in text
    assert "metrics.csv has no val/acc1" in text
    assert pictures(run) == [name for name in ALONE if name != "signature_by_epoch"]


def test_run_that_has_not_begun(tmp_path):
    page = report(tmp_path, write_run(tmp_path / "r", [], {}, []))
    text = page.words()
    for said in ("run.json records no start", "there is no config.yaml"):
        assert said in text
    assert not page.all("svg")
    assert not page.all("table")
    assert not page.all("input")


def test_run_without_a_teacher(tmp_path):
    students = {name: content for name, content in all_profiles().items() if name != "teacher"}
    run = write_run(tmp_path / "r", metrics(70.0, 80.0, 79.0, teacher=None), **students)
    page = report(tmp_path, run, only=["entropy_evolution"])
    assert pictures(run) == [name for name in ALONE if name != "teacher_spectra"]
    assert ("role", "teacher") not in [(box["name"], box["value"]) for box in page.all("input")]


def test_dead_layers_one_image_and_a_diverged_loss_do_not_cost_the_page(tmp_path):
    rows = metrics(70.0, 80.0, 79.0)
    rows += [{"epoch": 4, "step": 20, "train/loss": "nan", "train/loss_ce": "inf", "val/acc1": 10.0}]
    rows += [{"epoch": 5, "step": 25, "val/acc1": "nan"}]
    run = write_run(tmp_path / "r", rows, **all_profiles(dead=True, images=1))
    page = report(tmp_path, run, only=["entropy_evolution", "training_curves"])
    assert pictures(run) == [name for name in ALONE if "spectra" not in name]
    row = ["student, best (epoch 2)", "3", "0.400", "0.250", "unknown: one image", "lowest at 1"]
    assert row in page.rows
    assert ["student, last", "10.00", "–", "4"] in page.rows
    assert "val/acc1 is not a number, and left out, at epoch 5." in page.words()
    assert not re.search(r"\bnan\b", page.words())
    assert "NaN" not in page.text.replace("isNaN", "")  # no JSON that a browser refuses


def test_resumed_run_has_a_column_a_start(tmp_path):
    starts = [start(), start(from_epoch=2, commit=None, images_a_step=64)]
    page = report(tmp_path, write_run(tmp_path / "r", starts=starts, student_best=profile(2, U)), only=[])
    assert ["fact", "start 1", "start 2"] in page.rows
    assert ["from epoch", "0", "2"] in page.rows
    assert ["commit", "c1f024bb", "–"] in page.rows
    assert ["images a step", "16", "64"] in page.rows


def test_everything_is_escaped_and_pure_ascii(tmp_path):
    evil = '<b>x</b>"&--><script>alert(1)</script>'
    starts = [{"command": evil, evil: evil, "ended": {"epoch": 1, "error": evil}}]
    runs = [
        write_run(tmp_path / name, None, {"name": evil}, starts, student_epoch_0000=profile(0, U, model=evil))
        for name in ("<b>x & é", "$y$ <i>")
    ]
    some = ["entropy_by_block", "entropy_evolution", "student_spectra"]
    for paths in (runs[:1], runs):
        page = report(tmp_path, *paths, only=some)
        assert page.text.isascii()
        assert not page.all("b")
        assert not page.all("i")
        assert "alert" not in "".join(re.findall(r"<script>(.*?)</script>", page.text, flags=re.DOTALL))
        assert "<b>x & é" in page.words()
        assert [evil, evil] in page.rows
        assert f"name: {evil}" in page.words()
    assert {curve["run"] for curve in page.curves("entropy_by_block")} == {"<b>x & é", "$y$ <i>"}


def test_spectra_are_drawn_of_the_teacher_first_and_of_six_runs_at_most(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "spectra", lambda profile, title=None: title)
    runs = load_runs(write_run(tmp_path / f"r{n}", **all_profiles()) for n in range(8))
    drawn = [picture for picture in gallery(Study(runs)) if "spectra" in picture.name]
    assert [picture.name for picture in drawn] == ["teacher_spectra", *(f"spectra_r{n}" for n in range(6))]
    assert [picture.figure for picture in drawn[:2]] == [None, "Channel spectrum, r0"]
    assert drawn[1].caption.endswith("Not drawn, but in the table of spectra: r6 and r7.")
    few = [picture for picture in gallery(Study(runs[:6])) if "spectra" in picture.name]
    assert len(few) == 7
    assert "Not drawn" not in few[1].caption


def test_an_evolution_in_two_ranges_has_one_table_of_its_spectra(tmp_path):
    curves = [
        ("deit", value_range, epoch, False, profile(epoch, U, range_mode=value_range))
        for value_range in ("global", "layer")
        for epoch in (1, 2)
    ]
    page = report(tmp_path, write_analysis(tmp_path / "out", curves), only=[])
    captions = re.findall("<caption>(.*?)</caption>", page.text)
    assert captions.count("Shape of the entropy curve") == 2
    assert captions.count("Channel spectra, massive activations") == 1
    assert captions.count("Change over the probed epochs") == 1


def test_an_analysis_says_its_bootstrap_intervals_and_a_profile_in_holes_is_no_number(tmp_path):
    curves = [
        ("deit", "global", None, False, profile(None, U)),
        ("half", "global", None, False, profile(None, [4.4, np.nan, 4.0, 4.25])),
    ]
    page = report(tmp_path, write_analysis(tmp_path / "out", curves, bootstrap=True), only=[])
    (row,) = [row for row in page.rows if row[0] == "deit" and row[-1].startswith("lowest at")]
    assert re.fullmatch(r"0\.400 \(0\.39\d to 0\.40\d\)", row[2])
    assert "In brackets 95 % bootstrap intervals over images" in page.words()
    assert "unknown: not measured in half" in page.words()
    assert ["half", "–", "–", "–", "unknown: not measured", "–"] in page.rows
    assert not re.search(r"\bnan\b", page.words())


def test_readouts_are_intervals_where_these_were_asked_for(tmp_path):
    folder = write_analysis(
        tmp_path / "out", [("deit", "global", None, False, profile(None, U))], bootstrap=True
    )
    some = ["entropy_by_block"]
    (curve,) = report(tmp_path, folder, only=some).curves(*some)
    assert all(re.fullmatch(r"4\S* \([34]\.\d+ to 4\.\d+\)", point[3]) for point in curve["points"])
    # Beside a run that has none, bands are of one kind again.
    page = report(tmp_path, folder, write_run(tmp_path / "r", **all_profiles()), only=some)
    assert all(" ± " in point[3] for c in page.curves("entropy_by_block") for point in c["points"])


def test_a_run_of_which_no_entropy_is_known_has_a_page(tmp_path):
    unknown = {
        name: profile(p.epoch, np.full(len(p.entropy), np.nan), model=p.model)
        for name, p in all_profiles().items()
    }
    paths = [write_run(tmp_path / name, **unknown) for name in "ab"]
    assert "signature_by_epoch" not in pictures(paths[0])
    page = report(tmp_path, *paths, only=["magnitude_by_block"])
    assert "Shape of the entropy curve: unknown: not measured in SoftKD." in page.words()
    assert not re.search(r"\bnan\b", page.words())


def test_a_curve_of_the_set_has_a_figure_and_a_table(tmp_path):
    ranks = {"effective_rank": [4.0, 3.0, 2.0, 2.5], "errors": {"effective_rank": [0.125] * 4}}
    profiles = {**all_profiles(), "student_epoch_0003": profile(3, U, **ranks)}
    run = write_run(tmp_path / "a", **profiles)  # its other Profiles are of an earlier version
    page = report(tmp_path, run, only=["effective_rank_evolution"])
    (curve,) = page.curves("effective_rank_evolution")
    assert [point[3] for point in curve["points"]][:2] == ["4 ± 0.12", "3 ± 0.12"]
    assert ["student, epoch 3", "4 ± 0.12", "2.5 ± 0.12", "2 ± 0.12 at block 3", "4 ± 0.12 at block 1"] in [
        [*row] for row in page.rows
    ]
    several = pictures(run, write_run(tmp_path / "b", **all_profiles()))
    assert "effective_rank_by_method" not in several  # the best of neither has it


def test_equal_runs_give_equal_pages_and_only_the_page_is_written(tmp_path):
    texts = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        run_dir = write_run(folder / "r", **all_profiles())
        before = sorted(run_dir.rglob("*"))
        texts.append(report(run_dir, run_dir, only=["entropy_heatmap", "entropy_evolution"]).text)
        assert sorted(run_dir.rglob("*")) == sorted([*before, run_dir / "report.html"])
    assert texts[0] == texts[1]


def test_fit_writes_the_page_at_its_end_and_prints_its_tables(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(page_module, "gallery", lambda _: [])
    run_dir = write_run(tmp_path / "r", **all_profiles())
    end(run_dir, SimpleNamespace(teachers={}, teacher=None, student=SimpleNamespace(name="deit")))
    page = Page(run_dir / "report.html")
    printed = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    accuracy = [" ".join(" ".join(row).split()) for row in page.rows if len(row) == 4]
    named = [row[0] for row in page.rows]
    signatures = page.rows[named.index("entropy by block") :][1:5]
    assert (len(accuracy), len(signatures)) == (4, 4)
    assert set(accuracy) <= set(printed)
    for _, lowest, fall, rise, form, _ in signatures:  # the terminal has shorter words for the rest
        assert any(f"{lowest} {fall} {rise} {form}" in line for line in printed)
    assert any(line.startswith("report.html") for line in printed)


def test_teacher_curve_of_several_runs_is_drawn_once(several):
    (curve,) = [c for c in several.curves("entropy_by_method") if c["role"] == "teacher"]
    assert curve["run"] is None
    assert [point[3].split(" ")[0] for point in curve["points"]] == [f"{value:.5g}" for value in TEACHER]


def test_no_run_is_one_clear_line(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="neither a run directory") as caught:
        write_report([tmp_path / "empty"], tmp_path / "report.html")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "report.html").exists()


def test_of_many_runs_a_legend_has_the_methods_and_sentences_have_some_names(tmp_path):
    methods = {
        "soft": config(),
        "resnet": config(
            teacher={"class_path": "distill_dynamics.Backbone", "init_args": {"name": "resnet"}}
        ),
        "last": config({"s": term(last=1)}),
    }
    runs = [
        write_run(
            tmp_path / f"{name}-{seed}",
            conf=conf | {"seed_everything": seed},
            starts=[start(seed)],
            **all_profiles(seed / 10),
        )
        for name, conf in methods.items()
        for seed in range(5)
    ]
    drawn = {picture.name: picture for picture in gallery(Study(load_runs(runs)))}
    titles = ["SoftKD (cait), 5 runs", "SoftKD (resnet), 5 runs", "SpectralKD L 1, 5 runs"]
    for name in ("entropy_by_block", "training_curves", "signature_by_epoch"):
        (legend,) = drawn[name].figure.legends
        assert [text.get_text() for text in legend.get_texts()][:3] == titles
    for name in ("entropy_by_block", "training_curves", "signature_by_epoch"):
        for ax in drawn[name].figure.axes:
            lines = [line for line in ax.lines if getattr(line, "meta", None) and line.meta.role == "run"]
            assert len(lines) == 18  # each method's five runs, thin, and their mean
            looks = set()
            for method, title in enumerate(titles):
                *thin, thick = lines[6 * method : 6 * method + 6]
                assert (thick.meta.run, thick.meta.of) == (title, tuple(line.meta.run for line in thin))
                mean = np.mean([line.get_ydata() for line in thin], axis=0)
                np.testing.assert_allclose(thick.get_ydata(), mean)
                assert max(line.get_linewidth() for line in thin) < thick.get_linewidth()
                (colour,) = {to_hex(line.get_color()) for line in (*thin, thick)}
                looks.add((colour, str(thick.get_linestyle()), thick.get_marker()))
            assert len(looks) == 3
    maps = [ax.get_title(loc="left") for ax in drawn["entropy_heatmap"].figure.axes if ax.images]
    assert maps == ["soft-0", "resnet-0", "last-0"]
    assert [name for name in drawn if name.startswith("spectra_")] == [f"spectra_{n}-0" for n in methods]
    left = [f"{name}-{seed}" for name in methods for seed in range(1, 5)]
    note = drawn["spectra_soft-0"].caption.split("spectra: ")[-1]
    assert note == f"{', '.join(left[:-1])} and {left[-1]}."


def test_what_was_measured_in_other_bins_or_at_other_epochs_has_no_mean(tmp_path):
    def seed(number, method="soft", **changed):
        terms = {} if method == "soft" else {"s": term(last=1)}
        profiles = all_profiles(number / 10, **changed)
        if method == "late" and number == 1:
            del profiles["student_epoch_0000"]
        conf = config(terms, seed=number)
        return write_run(tmp_path / f"{method}-{number}", conf=conf, starts=[start(number)], **profiles)

    runs = [seed(number, bins=100 if number < 2 else 50) for number in range(4)]
    runs += [seed(number, "late") for number in range(9)]
    drawn = {picture.name: picture.figure for picture in gallery(Study(load_runs(runs)))}

    def means(name):
        lines = [line for ax in drawn[name].axes for line in ax.lines if getattr(line, "meta", None)]
        return {line.meta.of for line in lines if line.meta.of}

    late = tuple(f"late-{number}" for number in range(9))
    soft = tuple(f"soft-{number}" for number in range(4))
    assert means("entropy_by_block") == {late}
    assert means("signature_by_epoch") == set()  # and what has no mean is not thin
    widths = {line.get_linewidth() for line in drawn["entropy_by_block"].axes[0].lines[:4]}
    assert min(widths) > 1
    assert means("training_curves") == {late, soft}
    assert means("entropy_by_method") == {late, soft[:2], soft[2:]}
    titles = [ax.get_title("left").replace("\n", " ") for ax in drawn["entropy_by_method"].axes]
    assert titles[:2] == [f"SoftKD, 2 runs ({names})" for names in ("soft-0 and soft-1", "soft-2 and soft-3")]


def test_a_legend_of_any_length_leaves_room_for_the_curves(tmp_path):
    models = {f"model {number}": profile(number, U) for number in range(80)}
    figure = figures.curve_by_block("entropy", models)
    figure.savefig(tmp_path / "many.png")
    (ax,) = figure.axes
    assert ax.get_window_extent().height > 2 * figure.dpi  # inches
    (box,) = [legend.get_window_extent() for legend in figure.legends]
    assert 0 <= box.y0 < box.y1 <= ax.get_tightbbox().y0
