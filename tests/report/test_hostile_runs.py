"""A report of runs by strangers: what one holds costs a sentence, and never the page of the others."""

import errno
import json
import os
import struct
import zipfile
from contextlib import suppress
from pathlib import Path

import made
import numpy as np
import pytest
import yaml
from figures.test_training_curves import panels, render
from matplotlib.figure import Figure

from distill_dynamics import figures
from distill_dynamics.cli.main import main
from distill_dynamics.dynamics import Profile
from distill_dynamics.errors import UserError
from distill_dynamics.report.page import write_report
from distill_dynamics.report.runs import load_runs
from distill_dynamics.runs.read import Unreadable, read_yaml


def load(path):
    (run,) = load_runs([path])
    return run


def header(shape, kind="<f8"):
    """That of an array file, which says how large the array is, whatever follows."""
    text = repr({"descr": kind, "fortran_order": False, "shape": shape}).encode()
    text += b" " * (63 - (len(text) + 10) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def altered(path, meta=(), arrays=(), files=(), compression=zipfile.ZIP_STORED):
    """A made Profile with other entries: of its record, as arrays, or as they lie in the file."""
    made.profile(2, made.U).save(path)
    with np.load(path) as archive:
        content = dict(archive)
    record = json.loads(str(content["meta"])) | dict(meta)
    np.savez(path, **{**content, "meta": np.array(json.dumps(record)), **dict(arrays)})
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()} | dict(files)
    with zipfile.ZipFile(path, "w", compression, compresslevel=1) as archive:
        for name, entry in entries.items():
            archive.writestr(name, entry)
    return path


DEEP = "[" * 100_000
BAD = {
    "epoch infinite": {"meta": {"epoch": float("inf")}},
    "epoch negative": {"meta": {"epoch": -5}},
    "epoch of 30 digits": {"meta": {"epoch": 10**30}},
    "epoch true": {"meta": {"epoch": True}},
    "epoch text": {"meta": {"epoch": "2"}},
    "bins infinite": {"meta": {"bins": float("inf")}},
    "bins none": {"meta": {"bins": None}},
    "model a list": {"meta": {"model": ["a"]}},
    "model an object": {"meta": {"model": {"a": 1}}},
    "probe_id a list": {"meta": {"probe_id": ["a"]}},
    "range a list": {"meta": {"range_mode": ["global"]}},
    "range unknown": {"meta": {"range_mode": "wide"}},
    "layers text": {"meta": {"layers": "abcd"}},
    "layers lists": {"meta": {"layers": [["a"]] * 4}},
    "layers without end": {"meta": {"layers": ["a"] * 20_000}},
    "record deep": {"files": {"meta.npy": header((), f"<U{len(DEEP)}") + DEEP.encode("utf-32-le")}},
    "a number no measurement has": {"arrays": {"entropy": np.array([1e308, 1.0, 2.0, 3.0])}},
    "a spectrum no measurement has": {"arrays": {"spectrum_1": np.full(16, -1e200)}},
    "8 PiB by its header": {"files": {"entropy.npy": header((2**50,))}},
    "sizes whose product is 0": {"files": {"entropy_images.npy": header((2**62, 0))}},
    "an object": {"files": {"entropy.npy": header((4,), "|O") + b"cos\nsystem\n(S'exit'\ntR."}},
    "a bomb": {
        "files": {"entropy.npy": header((2**23 + 2**18,)) + bytes(2**26 + 2**21)},
        "compression": zipfile.ZIP_DEFLATED,
    },
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_profile_is_one_that_cannot_be_read(tmp_path, what):
    path = altered(tmp_path / "p.npz", **BAD[what])
    with pytest.raises(UserError, match=rf"^{path}: not a readable Profile[^\n]+$") as caught:
        Profile.load(path)
    assert len(str(caught.value)) < 500


def test_a_bomb_is_not_unpacked(tmp_path, monkeypatch):
    path = altered(tmp_path / "p.npz", **BAD["a bomb"])
    monkeypatch.setattr(np, "load", lambda *args, **kwargs: pytest.fail("unpacked"))
    with pytest.raises(UserError, match="bytes unpack to 69,"):
        Profile.load(path)


def test_a_packed_profile_and_one_that_diverged_are_read(tmp_path):
    infinite = np.array([np.inf, 1.0, np.nan, 3e38])
    path = altered(tmp_path / "p.npz", arrays={"magnitude": infinite}, compression=zipfile.ZIP_DEFLATED)
    np.testing.assert_array_equal(Profile.load(path).magnitude, infinite)


def test_bad_profiles_of_each_kind_leave_the_page_of_the_good_runs(tmp_path):
    rows, terms = made.metrics(61.25), {"t": made.term(last=1)}
    good = made.write_run(tmp_path / "good", rows, made.config(terms), **made.all_profiles())
    bad = made.write_run(tmp_path / "bad", **made.all_profiles())
    for number, what in enumerate(name for name in BAD if name != "a bomb"):
        altered(bad / "dynamics" / f"student_epoch_{number + 1:04d}.npz", **BAD[what])
    names = {"layers": ["$x^$", "l" * 20_000, "a\0\ud800\u202e", "\\$"], "model": "m" * 20_000}
    altered(bad / "dynamics" / "student_best.npz", names)
    text = write_report([good, bad], tmp_path / "out.html").read_text()
    assert "<td>61.25</td>" in text
    assert "student_epoch_0001.npz: not a readable Profile" in text


NAMES = ["$x^$", "a$b", "\\$\\frac$", "x" * 20_000, "a\0b\x1b[31m", "\ud800", "a b " * 9_000]


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_a_layer_a_model_and_a_term_may_have_any_name(name):
    six = made.profile(3, made.TEACHER, model=name)  # as many as have names on the axis, and a legend
    four = made.profile(3, made.U, model=name)
    for profile in (four, six):
        profile.layers = [f"{name}{number}" for number in range(len(profile.layers))]
    shown = [figures.spectra(four), figures.spectra(six), figures.curve_evolution("entropy", [four])]
    shown.append(figures.training_curves({name: [{"epoch": 1.0, f"train/loss_{name}": 1.0}]}))
    for figure in shown:
        render(figure)
    assert all(len(title) <= 140 for title in panels(shown[-1]))


# --- files that are text --------------------------------------------------------------------------------


def aliases(lines, width=9):
    """YAML in which each line is the one before it, `width` times."""
    rows = [f"a0: &a0 [{', '.join(['x'] * width)}]"]
    rows += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]" for n in range(1, lines)]
    return "\n".join(rows)


MERGED = "a0: &a0 {x: 1}\n" + "\n".join(
    f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}" for n in range(1, 20)
)
TEXTS = {
    "empty": "",
    "brackets": DEEP,
    "objects": '{"a":' * 50_000,
    "indents": "".join(" " * level + "a:\n" for level in range(500)),
    "aliases": aliases(20),
    "merges": MERGED,
    "a circle": "model: &a {student: *a, terms: *a}",
    "NUL": "\0" * 1000,
    "no text": "\x80\x81\x82" * 100,
    "a list": "[1, 2]",
    "digits": "9" * 10_000,
    "long": "a" * 30_000_000,
    "Python": "model: !!python/object/apply:os.system ['exit 1']",
}


@pytest.mark.parametrize("file", ["config.yaml", "run.json", "metrics.csv"])
@pytest.mark.parametrize("what", TEXTS)
def test_a_file_that_holds_anything_costs_a_sentence(tmp_path, file, what):
    path = made.write_run(tmp_path / "r")
    (path / file).write_text(TEXTS[what], encoding="latin-1")
    run = load(path)
    assert run.warnings
    assert all(len(warning) < 500 for warning in run.warnings)


def test_yaml_as_fit_writes_it_is_read_with_its_anchors(tmp_path):
    shared = {"betas": [0.9, 0.95]}
    content = {"model": {"a": shared, "b": shared}, "trainer": [shared] * 50}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(content) + "base: &base {x: 1}\nmore: {<<: *base, y: 2}\n")
    assert "*id001" in path.read_text()
    assert read_yaml(path) == {**content, "base": {"x": 1}, "more": {"x": 1, "y": 2}}
    path.write_text(aliases(3))
    assert len(read_yaml(path)["a2"]) == 9
    path.write_text(aliases(5))
    with pytest.raises(Unreadable, match="more than 20,000 values"):
        read_yaml(path)


KINDS = {
    "a pipe": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a folder": lambda path: path.mkdir(),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to nothing": lambda path: path.symlink_to("nowhere"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_file_is_neither_waited_for_nor_read_without_end(tmp_path, kind):
    for file in ("config.yaml", "metrics.csv", "dynamics/teacher.npz", "dynamics/student_best.npz"):
        path = made.write_run(tmp_path / file.replace("/", "-"), **made.all_profiles())
        (path / file).unlink()
        KINDS[kind](path / file)
        assert load(path).warnings
    for file in ("run.json", "analysis.json", "curves.csv"):
        folder = tmp_path / f"alone-{file}"
        folder.mkdir()
        KINDS[kind](folder / file)
        with suppress(UserError):
            assert load(folder).warnings


def test_a_link_that_leads_round_is_one_line(tmp_path):
    (tmp_path / "r").symlink_to("r")
    with pytest.raises(UserError, match="r: no such file or folder"):
        load(tmp_path / "r")


def test_a_number_of_images_that_nobody_has_is_unknown(tmp_path):
    path = made.write_run(tmp_path / "r", starts=[made.start(data={"val_images": 10**400})])
    assert load(path).validation_images is None


def with_metrics(tmp_path, text):
    path = made.write_run(tmp_path / "r")
    (path / "metrics.csv").write_text(text, encoding="utf-8")
    return load(path)


def test_a_column_of_text_costs_that_column(tmp_path):
    run = with_metrics(tmp_path, "epoch,val/acc1,note,more\n1,50,good,\n2,51,,\n")
    assert run.metrics == [{"epoch": 1.0, "val/acc1": 50.0}, {"epoch": 2.0, "val/acc1": 51.0}]
    assert "metrics.csv: text in the place of numbers, left out: note." in run.warnings


def test_a_spreadsheets_mark_at_the_beginning_is_no_part_of_a_name(tmp_path):
    assert with_metrics(tmp_path, "\ufeffepoch,val/acc1\n1,50\n").metrics == [
        {"epoch": 1.0, "val/acc1": 50.0}
    ]


@pytest.mark.parametrize(
    "row", ["-3,50", "1e300,50", "inf,50", "nan,50", "2,1e308", "2,-1e308", "2,x", ",50"]
)
def test_a_row_that_no_training_writes_is_left_out(tmp_path, row):
    run = with_metrics(tmp_path, f"epoch,val/acc1\n1,40\n{row}\n")
    assert run.metrics == [{"epoch": 1.0, "val/acc1": 40.0}]
    assert "metrics.csv: 1 row cut short or damaged, left out." in run.warnings


def test_more_epochs_or_losses_than_a_page_can_show(tmp_path):
    run = with_metrics(tmp_path, "epoch,val/acc1\n" + "".join(f"{n % 9},50\n" for n in range(30_000)))
    assert run.metrics == []
    assert "metrics.csv cannot be read (30,000 rows)." in run.warnings
    rows = [{"epoch": 1.0, "val/acc1": 5.0, **{f"train/loss_{n:04d}": 1.0 for n in range(3000)}}]
    drawn = figures.training_curves({"r": rows})
    assert "Top-1" in panels(drawn)
    assert len(drawn.axes) == 40


@pytest.mark.parametrize("row", ["checkpoint_epoch_" + "9" * 5000, "checkpoint_epoch_3,1e308"])
def test_a_published_row_that_nobody_published_is_left_out(tmp_path, row):
    path = tmp_path / "c.csv"
    path.write_text(f"Model/Epoch,Layer_1\n{row}\nmodel_best,2.5\n")
    assert load(path).warnings


# --- a full disk ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["png", "pdf", "html"])
def test_a_full_disk_is_one_line_and_leaves_what_was_there(tmp_path, monkeypatch, capsys, ending):
    run = made.write_published(tmp_path / "c.csv", {"model_best": [3, 2, 3, 4]})
    out, figure = tmp_path / "out.html", tmp_path / "out_figures" / f"entropy_by_block.{ending}"
    figure.parent.mkdir()
    for path in (out, figure):
        path.write_text("of yesterday")

    def saved(drawn, file, **kwargs):
        if kwargs["format"] == ending:
            raise OSError(errno.ENOSPC, "No space left on device")
        file.write_bytes(b"drawn") if isinstance(file, Path) else usual(drawn, file, **kwargs)

    def fsync(file):
        if os.fstat(file).st_size > 10_000:  # the page
            raise OSError(errno.ENOSPC, "No space left on device")

    usual = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", saved)
    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(SystemExit) as caught:
        main(["report", str(run), "--out", str(out)])
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    where = out if ending == "html" else figure
    assert line.startswith(f"error: {where}: No space left on device: ")
    assert line.count("MiB are free") == 1
    assert where.read_text() == out.read_text() == "of yesterday"
    assert not [*tmp_path.rglob("*.partial")]
