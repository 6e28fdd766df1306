"""The order in which a file is made whole, and the end of W&B's record."""

import os

import pytest
import wandb

from distill_dynamics.cluster.wandb_end import close_wandb
from distill_dynamics.files import atomic_write


def test_what_was_written_is_on_the_disk_before_its_name_is(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace

    def synced(number):
        calls.append(("fsync", os.readlink(f"/proc/self/fd/{number}"), os.fstat(number).st_size))
        fsync(number)

    def replaced(old, new):
        calls.append(("replace", str(old), str(new)))
        replace(old, new)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    with atomic_write(tmp_path / "x") as partial:
        partial.write_text("four")
    assert calls == [("fsync", str(partial), 4), ("replace", str(partial), str(tmp_path / "x"))]


class StandIn:
    def __init__(self):
        self.calls = []

    def mark_preempting(self):
        self.calls.append("preempting")


@pytest.mark.parametrize("preempted", [True, False])
def test_a_run_is_marked_as_preempted_if_it_was(monkeypatch, preempted):
    run = StandIn()
    monkeypatch.setattr(wandb, "run", run)
    monkeypatch.setattr(wandb, "finish", lambda status: run.calls.append(status))
    assert close_wandb(75, 10.0, preempted)
    assert run.calls == (["preempting"] if preempted else []) + [75]
