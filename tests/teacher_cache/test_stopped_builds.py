"""A build that is asked to stop ends there and then, and the same command goes on with what is written."""
# ruff: noqa: F811 - fixtures are imported

import os
import signal
import time

import pytest
from caching import folder, same_cache, small_blocks  # noqa: F401 - fixtures
from test_build_ranks import TWO, build, config, ended  # noqa: F401 - fixtures
from test_ranks import processes_of

from distill_dynamics.cli.main import main
from distill_dynamics.teacher_cache import files
from distill_dynamics.teacher_cache.cache import TeacherCache
from distill_dynamics.train import cache_teacher, evaluated_student

LINE = "stopped: what is written stays, and the same command goes on from there"


@pytest.fixture(autouse=True)
def _this_process_goes_on():
    """One that was stopped stays deaf to its end."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def at_call(monkeypatch, place, name, number, count):
    """Sends this process a signal when a function is called for the count-th time."""
    original, left = getattr(place, name), [count]

    def signalled(*args, **kwargs):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), number)
        return original(*args, **kwargs)

    monkeypatch.setattr(place, name, signalled)


def stopped(capsys, *words):
    """Status, and what a command says on stderr."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([*map(str, words)])
    return stop.value.code, capsys.readouterr().err.strip().splitlines()


@pytest.mark.parametrize(
    ("place", "name", "count", "number", "status"),
    [
        (cache_teacher, "measure", 1, signal.SIGTERM, 75),
        (files.Writer, "write", 20, signal.SIGUSR1, 75),
        (files.Writer, "write", 20, signal.SIGINT, 130),
    ],
)
def test_a_build_stops_in_its_preparation_and_in_its_loop(
    config, tmp_path, capsys, monkeypatch, small_blocks, place, name, count, number, status
):
    command = ["cache-teacher", "--config", config(), "--out", tmp_path / "cut"]
    with pytest.MonkeyPatch.context() as patch:
        at_call(patch, place, name, number, count)
        code, lines = stopped(capsys, *command)
    assert (code, lines[-1]) == (status, LINE)
    assert not any("Traceback" in line for line in lines)
    if place is files.Writer:
        left = TeacherCache.read(tmp_path / "cut").files.missing()
        assert 0 < len(left) < 10
    main([*map(str, command)])
    main(["cache-teacher", "--config", str(config()), "--out", str(tmp_path / "whole")])
    same_cache(tmp_path / "cut", tmp_path / "whole")


def test_validation_stops_too(config, capsys, monkeypatch):
    at_call(monkeypatch, evaluated_student.EvaluatedStudent, "validation_step", signal.SIGTERM, 2)
    code, lines = stopped(capsys, "validate", "--config", config())
    assert (code, lines[-1]) == (75, "stopped: nothing was written")


@pytest.mark.slow
@pytest.mark.parametrize("more", [("--data.num_workers", "2"), TWO])
def test_a_process_that_is_asked_to_stop_ends_soon(config, tmp_path, build, more):
    given = config()
    process = build(given, tmp_path / "cut", *more, pause=3.0)  # a minute and a half in all
    until = time.monotonic() + 120
    while len(list((tmp_path / "cut").glob("done/*"))) < 1:
        assert time.monotonic() < until
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    asked = time.monotonic()
    _, error = process.communicate(timeout=60)
    assert time.monotonic() - asked < 45
    assert process.returncode == 75, error
    assert error.strip().splitlines()[-1] == LINE
    assert "Traceback" not in error
    until = time.monotonic() + 10
    while processes_of(given) and time.monotonic() < until:
        time.sleep(0.1)
    assert not processes_of(given)
    assert "0 of 10 blocks" not in ended(build(given, tmp_path / "cut"))
    ended(build(given, tmp_path / "whole"))
    same_cache(tmp_path / "whole", tmp_path / "cut")
