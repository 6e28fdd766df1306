import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from hosts import two_hosts
from slurm_here import wait_for
from test_fit import assert_same_run, rows
from watched import EPOCHS, watched

FIT = ROOT / "docker" / "torchrun" / "fit.sh"


@pytest.fixture
def hosts():
    with two_hosts() as hosts:
        yield hosts


@pytest.mark.slow
def test_a_job_outlives_its_processes_and_a_host(hosts, experiment, tmp_path, monkeypatch):
    runs = tmp_path / "runs"
    config = watched(experiment, tmp_path, monkeypatch)
    first, second = hosts

    def start(host, number):
        environment = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "GLOO_SOCKET_IFNAME": "eth0",
            "PET_LOCAL_ADDR": host.address,  # both have this machine's name
            "HEAD": first.address,
            "NODES": "2",
            "NODE_RANK": str(number),
            "GPUS": "1",
        }
        with (tmp_path / f"host_{number}.log").open("ab") as log:
            return subprocess.Popen(
                host.inside(FIT, "--config", config, "--name", "job"),
                cwd=ROOT,
                env={**os.environ, **environment},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def under_way(epoch):
        wait_for(f"epoch {epoch}", (tmp_path / f"{epoch}_1").exists, 180)

    head, other = start(first, 0), start(second, 1)

    # The second host is shut down in order: torchrun passes the signal on, and a checkpoint is written.
    under_way(1)
    other.send_signal(signal.SIGTERM)
    assert other.wait(120) == 1
    other = start(second, 1)

    # Its process dies: torchrun starts both again.
    under_way(2)
    os.kill(int((tmp_path / "2_1").read_text()), signal.SIGKILL)

    # It goes down with torchrun and all, and comes back.
    under_way(3)
    second.goes_down()
    other.wait(60)
    other = start(second, 1)

    said = {path.name: path for path in tmp_path.glob("host_*.log")}
    for process in (other, head):
        assert process.wait(240) == 0, {name: path.read_text() for name, path in said.items()}
    assert_same_run(runs / "whole", runs / "job")
    assert [row["epoch"] for row in rows(runs / "job")] == [str(epoch) for epoch in range(EPOCHS + 1)]
    starts = json.loads((runs / "job" / "run.json").read_text())["starts"]
    assert [start["from_epoch"] for start in starts] == [0, 0, 1, 2]
    assert {start["devices"] for start in starts} == {"2 x cpu"}
