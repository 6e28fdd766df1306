"""Pages of runs without labels: what their numbers are called, and what stands beside them."""

from html import unescape

import made
import pytest

from distill_dynamics import figures
from distill_dynamics.report.cards import cards
from distill_dynamics.report.gallery import gallery
from distill_dynamics.report.runs import load_runs
from distill_dynamics.report.study import Study
from distill_dynamics.report.tables import results_rows


def label_free(folder, *knn1, seed=0, teachers=("teacher",), classes=10):
    """A run whose features were measured: linear top-1 is a point above kNN's."""
    rows = [{"epoch": 0, "step": 0, "val/knn1": 20.0, "val/linear1": 21.0, "val/effective_rank": 3.0}]
    for place, role in enumerate(teachers):
        rows[0] |= {
            f"{role}/knn1": 80.0 + place,
            f"{role}/linear1": 85.0 + place,
            f"{role}/effective_rank": 9.0,
        }
    for n, value in enumerate(knn1, start=1):
        measured = {"val/knn1": value, "val/linear1": value + 1, "val/effective_rank": 4.0 + n}
        rows.append({"epoch": n, "step": 5 * n, "train/loss": 1.0 / n, "train/loss_t": 1.0 / n, **measured})
    conf = made.config({"t": made.term("TokenKD", last=1)}, seed=seed, alpha=None, temperature=None)
    conf["data"]["init_args"]["labels"] = False
    data = {"name": "Data", "fingerprint": "d2", "classes": 0, "val_classes": classes, "val_queries": 500}
    return made.write_run(folder, rows, conf, [made.start(seed=seed, data=data)])


def caption(page, begins):
    text = unescape(page.read_text())
    start = text.index(f"<caption>{begins}")
    return text[start + 9 : text.index("</caption>", start)]


def test_the_table_of_several_says_what_its_columns_are(tmp_path):
    free = [label_free(tmp_path / f"free{seed}", 40.0, 50.0 + seed, seed=seed) for seed in range(3)]
    page = made.write_page(tmp_path / "free.html", *free, only=[])
    parted = "a half of the labelled validation images classifies the other by pooled features"
    note = f"kNN and linear top-1: {parted}; chance is 10 %"
    spread = "In percent; ± is the standard deviation over seeds."
    assert caption(page, "kNN") == f"{note}. {spread}"
    labelled = made.write_run(tmp_path / "labelled")
    page = made.write_page(tmp_path / "labelled.html", labelled, made.write_run(tmp_path / "more"), only=[])
    assert caption(page, "Accuracy") == f"Accuracy on the validation set. {spread}"
    page = made.write_page(tmp_path / "mixed.html", *free, labelled, only=[])
    assert caption(page, "Accuracy") == f"Accuracy on the validation set. {note}. {spread}"
    assert "compared with" not in page.read_text()  # no accuracy is a baseline of kNN's


def test_every_teacher_has_a_row_with_what_was_measured_of_it(tmp_path):
    run = label_free(tmp_path / "two", 40.0, 50.0, teachers=("teacher", "teacher_b"))
    header, first, second, student = results_rows(Study(load_runs([run])))
    assert header[4:-2] == ("kNN top-1 best", "kNN top-1 last", "linear top-1 last")
    assert first == ("teacher, cait", "", "", "", "80.00", "", "85.00", "", "")
    assert second == ("teacher b", "", "", "", "81.00", "", "86.00", "", "")
    assert student[4:7] == ("50.00", "50.00", "51.00")


def test_every_teacher_has_a_card_and_the_gap_is_to_the_first(tmp_path):
    run = label_free(tmp_path / "two", 40.0, 50.0, teachers=("teacher", "teacher_b"))
    shown = {card.title: card for card in cards(Study(load_runs([run])))}
    assert [*shown][:4] == ["Student", "Teacher", "Teacher b", "Gap"]
    assert shown["Teacher b"].value == "81.00 %"
    assert shown["Gap"].value == "30.00 points"
    assert shown["Gap"].details == ["below the teacher on 500 validation images"]


def test_the_training_figure_has_chance_and_each_teacher(tmp_path):
    run = label_free(tmp_path / "r", 12.0, 15.0, classes=8, teachers=("teacher", "teacher_b"))
    (picture,) = (one for one in gallery(Study(load_runs([run]))) if one.name == "training_curves")
    panels = {ax.get_title("left") or ax.get_title(): ax for ax in picture.figure.axes}
    levels = {
        title: {line.get_linestyle(): set() for line in ax.lines if not hasattr(line, "meta")}
        for title, ax in panels.items()
    }
    for title, ax in panels.items():
        for line in ax.lines:
            if not hasattr(line, "meta"):
                levels[title][line.get_linestyle()].update(line.get_ydata())
    assert levels["kNN top-1"] == {"-.": {80.0, 81.0}, ":": {12.5}}
    assert levels["Linear top-1"] == {"-.": {85.0, 86.0}, ":": {12.5}}
    assert levels["Effective rank"] == {"-.": {9.0}}
    (legend,) = picture.figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["Teacher", "Teacher b", "Chance"]
    assert any("Top-1 by chance: 12.5 %." in text.get_text() for text in picture.figure.texts)
    told = "Of pooled features kNN and linear top-1 and effective rank, beside the teacher's."
    assert picture.caption == f"Each loss term. {told}"


def test_chance_that_is_far_from_the_curves_is_told_and_not_drawn(tmp_path):
    """It would press them into the top of the panel."""
    run = label_free(tmp_path / "r", 70.0, 75.0, teachers=())
    rows = load_runs([run])[0].metrics
    rows[0] |= {"val/knn1": 69.0, "val/linear1": 69.0}
    figure = figures.training_curves({"r": rows}, chance={"r": 10.0})
    assert all(line.get_linestyle() != ":" for ax in figure.axes for line in ax.lines)
    assert any("Top-1 by chance: 10 %." in text.get_text() for text in figure.texts)


@pytest.mark.parametrize("named", [True, False])
def test_chance_is_of_runs_without_labels_alone(tmp_path, named):
    run = label_free(tmp_path / "r", 12.0) if named else made.write_run(tmp_path / "r")
    (picture,) = (one for one in gallery(Study(load_runs([run]))) if one.name == "training_curves")
    assert any("by chance" in text.get_text() for text in picture.figure.texts) is named
