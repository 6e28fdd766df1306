import json
import signal
import sys

import pytest

from distill_dynamics.callbacks.console import Console
from distill_dynamics.cli.main import main


def end_of(run):
    return json.loads((run / "run.json").read_text())["starts"][-1]["ended"]


@pytest.mark.parametrize(
    ("fails", "reason"),
    [
        (lambda *args: 1 / 0, "division by zero"),
        (lambda *args: signal.raise_signal(signal.SIGINT), "stopped"),
    ],
)
def test_a_run_whose_report_cannot_be_drawn_has_ended_well(
    experiment, tmp_path, monkeypatch, capsys, fails, reason
):
    monkeypatch.setattr("distill_dynamics.cli.fit_summary.write_report", fails)
    main(["fit", "--config", str(experiment(trainer__max_epochs=1))])
    run = tmp_path / "runs" / "tiny-1"
    assert end_of(run) == {"epoch": 1, "error": None}
    printed = capsys.readouterr().out
    (line,) = [line for line in printed.splitlines() if "no report" in line]
    assert reason in line
    assert "student, best" in printed
    assert "local-dir:" in printed
    table = printed.partition("accuracy")[2].partition("no report")[0]
    assert max(map(len, table.splitlines())) <= 80

    monkeypatch.undo()
    monkeypatch.setattr("distill_dynamics.report.page.save", lambda *args: None)  # no figures as files
    _, command, *rest = line.partition("distill_dynamics ")[2].partition("report ")
    main([command.strip(), *rest[0].split()])
    assert "<html" in (run / "report.html").read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_make_room_leaves_the_report_alone(experiment, tmp_path, monkeypatch, number):
    def signalled(*args):
        signal.raise_signal(number)
        (tmp_path / "went on").touch()

    def not_heard(*args):
        raise AssertionError("nobody heard the signal")

    monkeypatch.setattr("distill_dynamics.cli.fit_summary.write_report", signalled)
    before = signal.signal(number, not_heard)
    try:
        main(["fit", "--config", str(experiment(trainer__max_epochs=1))])
        assert signal.getsignal(number) is not_heard
    finally:
        signal.signal(number, before)
    assert (tmp_path / "went on").exists()
    assert end_of(tmp_path / "runs" / "tiny-1") == {"epoch": 1, "error": None}


def test_an_error_after_the_recorded_end_leaves_it(experiment, tmp_path, monkeypatch):
    def fails(*args):
        raise RuntimeError("after all is done")

    monkeypatch.setattr(Console, "on_fit_end", fails)
    with pytest.raises(RuntimeError, match="after all is done"):
        main(["fit", "--config", str(experiment(trainer__max_epochs=1))])
    assert end_of(tmp_path / "runs" / "tiny-1") == {"epoch": 1, "error": None}


def test_a_run_that_is_not_recorded_by_wandb_does_without_it(experiment, tmp_path, monkeypatch, no_report):
    monkeypatch.setitem(sys.modules, "wandb", None)  # to import it is an ImportError
    main(["fit", "--config", str(experiment(trainer__max_epochs=1)), "--wandb.mode", "disabled"])
    assert end_of(tmp_path / "runs" / "tiny-1") == {"epoch": 1, "error": None}
