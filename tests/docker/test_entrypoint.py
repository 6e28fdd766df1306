"""The image's entry point, run as the container would run it, in rooms that lack one thing each."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from conftest import ROOT

ENTRYPOINT = ROOT / "docker" / "entrypoint.sh"
FIT = ["python", "-m", "distill_dynamics", "fit", "--config", "x.yaml"]
SAID = "ran:"
GPU = "NVIDIA H100 80GB HBM3, 580.65.06"


class Container:
    """A room of its own: a PATH of fakes first, a working directory, an environment of nothing else."""

    def __init__(self, place: Path) -> None:
        self.work = place / "work"
        self.bin = place / "bin"
        self.bin.mkdir()
        (self.work / "runs").mkdir(parents=True)
        self.environment = {"PATH": f"{self.bin}:/usr/bin:/bin", "HOME": str(place), "TMPDIR": str(place)}
        self.fake("python", 'case "$*" in *torch.cuda*) exit 0 ;; esac\necho "ran: $*"')
        self.shm(64)

    def fake(self, name: str, script: str) -> None:
        (self.bin / name).write_text(f"#!/bin/sh\n{script}\n")
        (self.bin / name).chmod(0o755)

    def shm(self, gib: float) -> None:
        self.fake("df", f"echo 'Size'; echo '{int(gib * 2**20)}'")

    def gpus(self, count: int) -> None:
        self.environment["NVIDIA_VISIBLE_DEVICES"] = "all"
        self.fake("nvidia-smi", "\n".join([f'echo "{GPU}"'] * count))

    def run(self, *command: str) -> tuple[int, str, list[str]]:
        """Exit status, what the command said, and what the entry point said, by lines."""
        done = subprocess.run(
            [ENTRYPOINT, *command], cwd=self.work, env=self.environment, capture_output=True, text=True
        )
        return done.returncode, done.stdout, done.stderr.splitlines()


@pytest.fixture
def container(tmp_path):
    return Container(tmp_path)


def test_a_whole_container_says_what_it_has_and_runs_the_command(container):
    container.gpus(8)
    status, out, lines = container.run(*FIT)
    assert (status, out) == (0, f"{SAID} {' '.join(FIT[1:])}\n")
    assert lines == [f"container: 8 x {GPU}"]
    assert list((container.work / "runs").iterdir()) == []  # nothing is left of the looking


def test_a_run_on_the_cpu_is_a_note(container):
    status, out, lines = container.run(*FIT)
    assert status == 0
    assert out.startswith(SAID)
    assert lines == ["container: no GPU was asked for: this runs on the CPU"]


@pytest.mark.parametrize("options", [["--runs_dir", "there/runs"], ["--runs_dir=there/runs"], []])
def test_runs_that_cannot_be_written_stop_fit_and_nothing_else(container, options):
    """A file where the folder would be: root cannot write there either."""
    place = container.work / ("there" if options else "runs")
    shutil.rmtree(container.work / "runs")
    place.write_text("")
    status, out, lines = container.run(*FIT, *options)
    assert (status, out) == (78, "")
    named = options[-1].removeprefix("--runs_dir=") if options else "runs"
    said = [line for line in lines if f"the runs go to {named}, where uid {os.getuid()} cannot write" in line]
    assert len(said) == 1
    assert str(container.work / named) in said[0]  # where to mount a folder

    status, out, _ = container.run("python", "report", *options)
    assert (status, out) == (0, " ".join([SAID, "report", *options]) + "\n")


def test_runs_that_a_run_will_make_are_looked_for_above(container):
    status, _, lines = container.run(*FIT, "--runs_dir", str(container.work / "a" / "b"))
    assert status == 0
    assert len(lines) == 1
    assert not (container.work / "a").exists()


@pytest.mark.skipif(os.getuid() != 0, reason="only root becomes another user")
def test_a_folder_of_another_users_is_not_writable(container):
    """What a mounted folder usually lacks: the permission of the image's user."""
    with tempfile.TemporaryDirectory(dir="/tmp") as place:  # pytest's own are closed to other users
        Path(place).chmod(0o755)
        shutil.copy(ENTRYPOINT, place)
        runs = Path(place, "runs")
        runs.mkdir(mode=0o755)
        environment = {"PATH": "/usr/bin:/bin", "HOME": "/tmp"}
        command = [f"{place}/entrypoint.sh", "echo", "fit"]

        def run():
            return subprocess.run(
                command, cwd=place, env=environment, user=65534, capture_output=True, text=True
            )

        done = run()
        assert (done.returncode, done.stdout) == (78, "")
        assert "the runs go to runs, where uid 65534 cannot write" in done.stderr
        runs.chmod(0o777)
        done = run()
        assert (done.returncode, done.stdout) == (0, "fit\n")


def test_little_shared_memory_is_a_warning_with_its_remedy(container):
    container.shm(1)
    assert len(container.run(*FIT)[2]) == 1
    container.shm(1 / 16)  # Docker's default
    status, out, lines = container.run(*FIT)
    assert status == 0
    assert out.startswith(SAID)
    (line,) = [line for line in lines if "/dev/shm" in line]
    assert "64 MiB" in line
    assert "--shm-size" in line
    assert "medium Memory" in line


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"NVIDIA_VISIBLE_DEVICES": "all"}, "NVIDIA_VISIBLE_DEVICES=all"),
        ({"NVIDIA_VISIBLE_DEVICES": "void", "CUDA_VISIBLE_DEVICES": "0"}, "CUDA_VISIBLE_DEVICES=0"),
        ({"CUDA_VISIBLE_DEVICES": "", "SLURM_GPUS_ON_NODE": "8"}, "SLURM_GPUS_ON_NODE=8"),
        (["--trainer.accelerator", "gpu"], "--trainer.accelerator gpu"),
        (["--trainer.accelerator=cuda"], "--trainer.accelerator cuda"),
    ],
)
def test_gpus_that_were_asked_for_and_are_not_there_stop_fit(container, asked, named):
    options = asked if isinstance(asked, list) else []
    container.environment |= asked if isinstance(asked, dict) else {}
    if shutil.which("nvidia-smi", path="/usr/bin:/bin"):
        pytest.skip("this machine has a driver of its own")
    status, out, lines = container.run(*FIT, *options)
    assert (status, out) == (78, "")
    assert len(lines) == 1
    assert f"({named})" in lines[0]
    assert "--gpus all" in lines[0]

    assert container.run("python", "report", *options)[0] == 0


@pytest.mark.parametrize(
    "environment",
    [{"NVIDIA_VISIBLE_DEVICES": "none"}, {"CUDA_VISIBLE_DEVICES": "-1"}, {"SLURM_GPUS_ON_NODE": "0"}],
)
def test_no_gpu_is_not_asked_for(container, environment):
    container.environment |= environment
    assert container.run(*FIT)[0] == 0
    container.environment["NVIDIA_VISIBLE_DEVICES"] = "all"
    assert container.run(*FIT, "--trainer.accelerator", "cpu")[0] == 0


def test_a_driver_that_fails_is_told_in_its_own_words(container):
    container.gpus(1)
    words = "Failed to initialize NVML: Driver/library version mismatch"
    container.fake("nvidia-smi", f"echo '{words}'\necho more\nexit 18")
    status, out, lines = container.run(*FIT)
    assert (status, out) == (78, "")
    assert len(lines) == 1
    assert words in lines[0]
    assert "more" not in lines[0]


def test_gpus_that_pytorch_cannot_use_are_told_in_its_words(container):
    container.gpus(8)
    reason = "RuntimeError: The NVIDIA driver on your system is too old (found version 12020)."
    container.fake("python", f'echo Traceback >&2; echo "{reason}" >&2; exit 1')
    status, _, lines = container.run(*FIT)
    assert status == 78
    assert len(lines) == 1
    assert lines[0].endswith(reason)
    assert "580.65.06" in lines[0]


def test_of_a_nodes_tasks_the_first_speaks(container):
    container.shm(0)
    container.environment["SLURM_LOCALID"] = "0"
    assert len(container.run(*FIT)[2]) == 2
    container.environment["SLURM_LOCALID"] = "3"
    status, out, lines = container.run(*FIT)
    assert status == 0
    assert out.startswith(SAID)
    assert lines == []


def test_signals_and_exit_status_are_the_commands(container):
    """A preempted run's 75 must reach the scheduler, and its SIGTERM must reach the run."""
    container.fake("python", "trap 'echo stopped; exit 75' TERM\necho ready\nwhile :; do sleep 0.05; done")
    with subprocess.Popen(
        [ENTRYPOINT, *FIT], cwd=container.work, env=container.environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == "stopped\n"
    assert process.returncode == 75
