import os
from datetime import UTC, datetime

from distill_dynamics.runs import machine
from distill_dynamics.runs.directory import claim, record, record_end, starts_of


def test_a_start_says_when_it_began_and_ended_and_on_what(tmp_path):
    before = datetime.now(UTC).replace(microsecond=0)
    run = claim(tmp_path, "r", "x")
    record(run, 0, devices="1 x cpu")
    assert "ended_at" not in starts_of(run)[0]  # a run that is killed has none
    record_end(run, 1)
    (start,) = starts_of(run)
    begun, ended = (datetime.fromisoformat(start[key]) for key in ("started", "ended_at"))
    assert before <= begun <= ended <= datetime.now(UTC)
    assert start["machine"]
    assert os.uname().nodename not in start["machine"]


def test_the_machine_is_its_processors_as_linux_tells(tmp_path, monkeypatch):
    (tmp_path / "cpuinfo").write_text("processor : 0\nmodel name\t: Some  CPU @ 2 GHz\nflags : x\n")
    for number, name in enumerate(("NVIDIA H200", "NVIDIA H200", "NVIDIA A2")):
        folder = tmp_path / "gpus" / f"0000:{number:02d}:00.0"
        folder.mkdir(parents=True)
        (folder / "information").write_text(f"Model: \t\t {name}\nIRQ: 7\n")
    monkeypatch.setattr(machine, "_CPU", tmp_path / "cpuinfo")
    monkeypatch.setattr(machine, "_GPUS", tmp_path / "gpus")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    assert machine.machine() == "Some CPU @ 2 GHz, 3 CPUs, 2 x NVIDIA H200, 1 x NVIDIA A2"
    monkeypatch.setattr(machine, "_CPU", tmp_path / "none")
    monkeypatch.setattr(machine, "_GPUS", tmp_path / "none")
    assert machine.machine().endswith(", 3 CPUs")
