import json
import re
import sys

import pytest
from conftest import ROOT
from slurm_here import slurm_here, wait_for
from test_fit import assert_same_run, rows
from watched import STEPS, watched

SBATCH = ROOT / "docker" / "slurm" / "fit.sbatch"
SMALL = ("--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=1", "--cpus-per-task=1", "--time=30")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    with slurm_here(tmp_path_factory.mktemp("slurm")) as slurm:
        yield slurm


@pytest.mark.slow
def test_a_job_stopped_twice_ends_as_if_it_never_had_been(slurm, experiment, tmp_path, monkeypatch):
    runs, log = tmp_path / "runs", tmp_path / "job.log"
    config = watched(experiment, tmp_path, monkeypatch)
    ours = ("--config", config, "--name", "job")
    number = slurm("sbatch", "--parsable", *SMALL, f"--output={log}", SBATCH, *ours, LAUNCH=sys.executable)

    def stopped(times):
        job = slurm.job(number)
        return job["Restarts"] == str(times) and job["JobState"] == "PENDING"

    def start_again():
        # SLURM would wait two minutes. In the second of the requeueing it would refuse the job's credential.
        slurm("scontrol", "update", f"JobId={number}", "StartTime=now+3")

    # What --signal sends before the time limit: to the tasks, not to the script.
    wait_for("first epoch", (tmp_path / "1_0").exists, 240)
    slurm("scancel", "--signal=USR1", number)
    wait_for("requeued job", lambda: stopped(1), 60)
    start_again()

    # Another's job, from a partition that comes first, takes both nodes.
    wait_for("second epoch", (tmp_path / "2_0").exists, 240)
    slurm("srun", "--partition=theirs", "--nodes=2", "--ntasks-per-node=1", "true")
    wait_for("preempted job", lambda: stopped(2), 60)
    start_again()

    wait_for("end", lambda: slurm.job(number)["JobState"] not in ("PENDING", "RUNNING", "COMPLETING"), 240)
    assert slurm.job(number)["JobState"] == "COMPLETED", log.read_text()
    assert_same_run(runs / "whole", runs / "job")
    assert [row["epoch"] for row in rows(runs / "job")] == ["0", "1", "2", "3"]
    starts = json.loads((runs / "job" / "run.json").read_text())["starts"]
    assert [(start["from_epoch"], start["devices"]) for start in starts] == [
        (0, "2 x cpu"), (0, "2 x cpu"), (1, "2 x cpu"),
    ]  # fmt: skip
    stops = [int(step) for step in re.findall(r"asked to stop in epoch \d after step (\d+)", log.read_text())]
    assert [step // STEPS for step in stops] == [0, 1]
    assert all(step % STEPS for step in stops)  # both in the middle of an epoch


@pytest.mark.slow
def test_a_job_that_is_cancelled_does_not_come_back(slurm, tmp_path):
    log, launch = tmp_path / "job.log", tmp_path / "launch"
    # Leaves at once with the status of a run that can be continued.
    launch.write_text("#!/bin/sh\ntrap 'exit 75' TERM\necho here\nwhile :; do sleep 0.1; done\n")
    launch.chmod(0o755)
    number = slurm("sbatch", "--parsable", *SMALL, f"--output={log}", SBATCH, LAUNCH=str(launch))
    wait_for("both tasks", lambda: log.exists() and log.read_text().count("here") == 2, 60)
    slurm("scancel", number)
    wait_for("empty queue", lambda: not slurm("squeue", "--noheader"), 60)
    assert slurm.job(number)["JobState"] == "CANCELLED"
    assert "exit code 75" in log.read_text()
