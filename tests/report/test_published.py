import csv
from pathlib import Path

import made
import numpy as np
import pytest

from distill_dynamics.errors import UserError
from distill_dynamics.report.findings import findings
from distill_dynamics.report.published import is_published, read_published
from distill_dynamics.report.runs import load_runs
from distill_dynamics.report.study import Study

ROWS = {
    "checkpoint_epoch_60": [3, 2, 1, 4],
    "checkpoint_epoch_30": [1, 2, 3, 4],
    "model_best": [3, 1, 2, 4.5],
}
REFERENCE = Path(__file__).parents[3] / "shared" / "reference" / "entropy_evolution"


def test_epochs_in_order_and_the_best_apart(tmp_path):
    students, best, warnings = read_published(made.write_published(tmp_path / "Soft.csv", ROWS))
    assert [profile.epoch for profile in students] == [30, 60]
    np.testing.assert_array_equal(students[1].entropy, [3, 2, 1, 4])
    np.testing.assert_array_equal(best.entropy, [3, 1, 2, 4.5])
    assert best.epoch is None
    assert best.layers == ["Layer_1", "Layer_2", "Layer_3", "Layer_4"]
    assert warnings == []


def test_what_was_not_published_is_not_made_up(tmp_path):
    (profile, *_), _, _ = read_published(made.write_published(tmp_path / "Soft.csv", ROWS))
    assert profile.entropy_images.shape == (0, 4)
    assert np.isnan(profile.magnitude).all()
    assert [len(spectrum) for spectrum in profile.spectrum] == [0] * 4
    assert profile.probe_id == ""
    profile.save(tmp_path / "p.npz")
    np.testing.assert_array_equal(type(profile).load(tmp_path / "p.npz").entropy, profile.entropy)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("checkpoint_epoch_90,1,2,3", "4 numbers are due, 3 can be read"),
        ("checkpoint_epoch_90,1,2,3,x", "4 numbers are due, 3 can be read"),
        ("checkpoint_epoch_90,1,2,3,nan", "4 numbers are due, 3 can be read"),
        ("checkpoint_epoch_30,1,2,3,4", "epoch 30 is there twice"),
        ("teacher,1,2,3,4", "'teacher' is neither"),
        ("model_best,1,2,3,4", "model_best is there twice, the first one counts"),
        (f"checkpoint_epoch_90,1,2,3,{'4' * 200_000}", "'' is neither"),
    ],
)
def test_a_row_that_cannot_be_read_costs_a_warning(tmp_path, line, told):
    path = made.write_published(tmp_path / "Soft.csv", ROWS)
    path.write_text(path.read_text() + line + "\n")
    students, best, (warning,) = read_published(path)
    assert [profile.epoch for profile in students] == [30, 60]
    np.testing.assert_array_equal(best.entropy, ROWS["model_best"])
    assert warning.startswith(f"Line 5 of Soft.csv is left out: {told}")


def test_a_spreadsheet_s_byte_order_mark_is_no_obstacle(tmp_path):
    path = made.write_published(tmp_path / "Soft.csv", ROWS)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert is_published(path)
    assert len(read_published(path)[0]) == 2


@pytest.mark.parametrize(
    "text", ["", "epoch,loss\n1,2\n", "Model/Epoch,Layer_1\nx,1\n", f"Model/Epoch,{'L' * 200_000}\n"]
)
def test_another_file_is_one_clear_line(tmp_path, text):
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=r"a\.csv: ") as caught:
        read_published(path)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def reference():
    if not REFERENCE.is_dir():
        pytest.skip(f"the published curves are not at {REFERENCE}")
    return REFERENCE


def test_the_published_files_value_by_value(reference):
    runs = load_runs([reference])
    assert [run.name for run in runs] == ["SoftKD", "SpectralKD01", "SpectralKD10", "SpectralKD11"]
    for run in runs:
        assert run.warnings == []
        with (reference / f"{run.name}.csv").open() as file:
            rows = {row[0]: [float(cell) for cell in row[1:]] for row in list(csv.reader(file))[1:]}
        assert [profile.epoch for profile in run.profiles.students] == list(range(30, 301, 30))
        for profile in run.profiles.students:
            np.testing.assert_array_equal(profile.entropy, rows[f"checkpoint_epoch_{profile.epoch}"])
        np.testing.assert_array_equal(run.profiles.best.entropy, rows["model_best"])


def test_what_the_paper_saw_comes_out_without_being_told(reference):
    runs = load_runs([reference])
    shapes, suppressed = findings(Study(runs))
    assert shapes.endswith("unknown: no images in SoftKD, SpectralKD01, SpectralKD10 and SpectralKD11.")
    assert suppressed == (
        "The last block has the lowest entropy in SpectralKD01 until epoch 120, and rises by 0.45 bits from "
        "epoch 120 on."
    )
    assert findings(Study(runs[:1]))[0] == (
        "Entropy is lowest at block 4 (unknown: no images) in the best checkpoint, and at block 2 "
        "(unknown: no images) at epoch 30."
    )
