"""A SLURM of its own for a test, on this machine: two "nodes" of one CPU and one "GPU"."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

CONF = """
ClusterName=here
SlurmctldHost=localhost
SlurmctldPort=26817
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdSpoolDir={folder}/%n
SlurmdPidFile={folder}/%n.pid
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
GresTypes=gpu
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
# The ranks meet at the first node's name, in the order of names: it must be one that this machine resolves.
NodeName={name} NodeHostname=localhost NodeAddr=127.0.0.1 Port=26821 CPUs=1 RealMemory=1000 Gres=gpu:1
NodeName={name}-2 NodeHostname=localhost NodeAddr=127.0.0.1 Port=26822 CPUs=1 RealMemory=1000 Gres=gpu:1
PartitionName=ours Nodes={name},{name}-2 Default=YES PriorityTier=1 GraceTime=120
PartitionName=theirs Nodes={name},{name}-2 PriorityTier=2 PreemptMode=OFF
"""


def installed(tool: str, *packages: str) -> None:
    """Skip the test where `tool` is missing and cannot be had from Debian's packages."""
    if os.getuid() != 0:
        pytest.skip("needs root")
    if shutil.which(tool) is None and shutil.which("apt-get") is not None:
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in (["update", "-qq"], ["install", "-y", "-qq", *packages]):
            subprocess.run(["apt-get", *command], env=environment, capture_output=True, check=False)
    if shutil.which(tool) is None:
        pytest.skip(f"needs {' and '.join(packages)}")


def wait_for(what: str, condition: Callable[[], object], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"no {what} in {seconds} s"
        time.sleep(0.1)


class Slurm:
    """The client's side: its commands with the daemons' configuration."""

    def __init__(self, folder: Path):
        self.conf = str(folder / "slurm.conf")

    @property
    def environment(self) -> dict[str, str]:
        """This process's, which a job inherits, and where the daemons are."""
        return {**os.environ, "SLURM_CONF": self.conf}

    def __call__(self, *command: str | os.PathLike, **changes: str) -> str:
        """What a client command prints; `changes` are set in its environment."""
        done = subprocess.run(
            command, env={**self.environment, **changes}, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """What SLURM knows of a job: JobState, Restarts, ExitCode, ..."""
        return dict(re.findall(r"(\S+?)=(\S*)", self("scontrol", "show", "job", number)))


@contextmanager
def slurm_here(folder: Path) -> Iterator[Slurm]:
    """Install SLURM if it is missing, start its daemons under `folder`, stop them all afterwards."""
    installed("slurmctld", "slurm-wlm", "munge")
    (folder / "state").mkdir()
    name = socket.gethostname().partition(".")[0]
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o600)
    (folder / "gpu").touch()
    (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu\n")
    (folder / "slurm.conf").write_text(CONF.format(folder=folder, name=name))
    slurm = Slurm(folder)
    files = [
        f"--{name}-file={folder}/{file}"
        for name, file in {"key": "munge.key", "pid": "munge.pid", "log": "munge.log", "seed": "seed"}.items()
    ]
    # In the foreground, so that they are children that can be waited for. --force: a test.s folder lies
    # in one that anybody may write to.
    daemons = {
        "munged": ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *files],
        "slurmctld": ["slurmctld", "-D"],
        "first": ["slurmd", "-D", "-N", name],
        "second": ["slurmd", "-D", "-N", f"{name}-2"],
    }
    running: list[subprocess.Popen] = []
    try:
        for daemon, command in daemons.items():
            with (folder / f"{daemon}.out").open("wb") as out:
                running.append(
                    subprocess.Popen(command, env=slurm.environment, stdout=out, stderr=subprocess.STDOUT)
                )
            if daemon == "munged":
                wait_for("munge.socket", (folder / "munge.socket").exists, 20)
        wait_for("idle nodes", lambda: _idle_nodes(slurm) == 2 or _ended(running), 60)
        assert not _ended(running), {path.name: path.read_text() for path in folder.glob("*.out")}
        yield slurm
        slurm("scancel", "--user=root")
        with suppress(AssertionError):
            wait_for("empty queue", lambda: not slurm("squeue", "--noheader"), 60)
    finally:
        for process in reversed(running):
            process.terminate()
        for process in reversed(running):
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def _idle_nodes(slurm: Slurm) -> int:
    with suppress(AssertionError):  # slurmctld is not up yet
        return len(slurm("sinfo", "--noheader", "--Node", "--states=idle", "--partition=ours").splitlines())
    return 0


def _ended(running: list[subprocess.Popen]) -> bool:
    return any(process.poll() is not None for process in running)
