"""metrics.csv: rows of the project's own, and what else is logged; read with Python's csv module."""

import csv

import pytest

from distill_dynamics.train.run_logger import RunLogger


def rows(path):
    with (path / "metrics.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if v != ""} for row in csv.DictReader(file)]


def run_of(path, epochs):
    logger = RunLogger(path)
    logger.log_row({"epoch": 0, "teacher/acc1": 90.0}, step=0)
    for epoch in range(1, epochs + 1):
        logger.begin_epoch(epoch)
        logger.log_row({"epoch": epoch, "train/loss": epoch / 3, "val/acc1": 10.0 * epoch}, step=5 * epoch)
    return logger


def test_what_others_log_is_in_the_row_of_its_completed_epoch(tmp_path):
    logger = RunLogger(tmp_path)
    logger.log_metrics({"before": 1.0}, step=0)
    logger.log_row({"epoch": 0, "teacher/acc1": 90.0}, step=0)
    for epoch in (1, 2):
        logger.begin_epoch(epoch)
        # As LearningRateMonitor does, without an epoch; then as self.log does, with the one Lightning counts.
        logger.log_metrics({"lr-AdamW": 0.1 * epoch}, step=5 * (epoch - 1))
        for step in (1, 2):
            logger.log_metrics({"mine/step": step, "epoch": epoch - 1}, step=step)
        logger.log_row({"epoch": epoch, "train/loss": 2.0}, step=5 * epoch)
        logger.log_metrics({"mine/completed": epoch, "epoch": epoch - 1}, step=5 * epoch - 1)
    found = rows(tmp_path)
    assert [(row["epoch"], row["step"]) for row in found] == [("0", "0"), ("1", "5"), ("2", "10")]
    assert found[0] == {"epoch": "0", "step": "0", "teacher/acc1": "90.0", "before": "1.0"}
    for epoch, row in enumerate(found[1:], start=1):
        assert float(row["lr-AdamW"]) == 0.1 * epoch
        assert (row["mine/step"], row["mine/completed"]) == ("2", str(epoch))


def test_no_number_of_the_projects_is_overwritten(tmp_path):
    logger = run_of(tmp_path, 1)
    with pytest.warns(UserWarning, match="its own val/acc1"):
        logger.log_metrics({"val/acc1": 99.0, "epoch": 7, "step": 8}, step=9)
    assert rows(tmp_path)[1] == {"epoch": "1", "step": "5", "train/loss": str(1 / 3), "val/acc1": "10.0"}


@pytest.mark.parametrize(
    ("cut", "left_out", "missing"),
    [
        (lambda text: text, None, None),
        (lambda text: text[:-3], "1 row was", "epoch 4"),  # in its last number
        (lambda text: text[: text.rindex("3,15")], "rows are gone", "epoch 3, 4"),
        (lambda text: text[: text.rindex("4,20") + 6], "1 row was", "epoch 4"),
        (lambda text: text.replace("2,10,", "2,10,x"), "1 row was", "epoch 2"),
        (lambda text: "", "rows are gone", "epoch 1, 2, 3, 4"),
    ],
)
def test_a_run_that_goes_on_tells_what_its_metrics_have_lost(tmp_path, capsys, cut, left_out, missing):
    run_of(tmp_path, 4)
    whole = rows(tmp_path)
    path = tmp_path / "metrics.csv"
    path.write_bytes(cut(path.read_bytes().decode()).encode())
    logger = RunLogger(tmp_path)
    logger.continue_from(4)
    said = capsys.readouterr().err
    if left_out is None:
        assert said == ""
        assert rows(tmp_path) == whole
    else:
        assert said.count("\n") == 1
        assert all(words in said for words in (str(path), left_out, missing))
    logger.begin_epoch(5)
    logger.log_row({"epoch": 5, "train/loss": 1.0}, step=25)
    numbers = [int(row["epoch"]) for row in rows(tmp_path)]
    lost = [n for n in range(1, 5) if f" {n}" in (missing or "")]
    assert [n for n in numbers if n] == [n for n in range(1, 6) if n not in lost]


def test_epochs_that_are_run_again_lose_their_rows(tmp_path):
    run_of(tmp_path, 4)
    RunLogger(tmp_path).continue_from(2)
    assert [row["epoch"] for row in rows(tmp_path)] == ["0", "1", "2"]


def test_a_run_that_begins_from_anothers_checkpoint_has_lost_nothing(tmp_path, capsys):
    RunLogger(tmp_path).continue_from(4)
    assert capsys.readouterr().err == ""
