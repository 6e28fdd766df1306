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


def test_no_gpu_is_a_note(container):
    status, out, lines = container.run(*FIT)
    assert status == 0
    assert out.startswith(SAID)
    (line,) = lines
    assert line.startswith("container: no GPU: the container has no NVIDIA driver")
    assert "--gpus all" in line


@pytest.mark.parametrize("options", [["--runs_dir", "there/runs"], ["--runs_dir=there/runs"]])
def test_runs_that_are_sent_where_nothing_can_be_written_stop_fit_and_nothing_else(container, options):
    """A file where the folder would be: root cannot write there either."""
    container.gpus(1)
    (container.work / "there").write_text("")
    status, out, lines = container.run(*FIT, *options)
    assert (status, out) == (78, "")
    line, _ = lines
    assert f"uid {os.getuid()} cannot write to there/runs: " in line
    assert f"-v DIR:{container.work / 'there/runs'}" in line

    for other in (["report", "fit"], ["analyze", "--config", "fit"]):  # fit is a run's name here, or a file's
        command = ["python", "-m", "distill_dynamics", *other, *options]
        assert container.run(*command) == (0, f"{SAID} {' '.join(command[1:])}\n", lines)


def test_where_runs_go_is_a_note_where_the_configuration_may_say_otherwise(container):
    container.gpus(1)
    shutil.rmtree(container.work / "runs")
    (container.work / "runs").write_text("")
    for options in ([], ["--runs_dir", "runs", "--config", "later.yaml"], ["--config=x", "--config=y"]):
        status, out, lines = container.run(*FIT, *options)
        assert status == 0
        assert out.startswith(SAID)
        line, _ = lines
        assert "cannot write to runs, where the runs go unless a configuration says otherwise" in line
    assert container.run(*FIT, "--runs_dir", "runs")[0] == 78
    assert len(container.run(*FIT, "--runs_dir", str(container.work))[2]) == 1  # nothing is wrong with that


def test_runs_that_a_run_will_make_are_looked_for_above(container):
    container.gpus(1)
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
        command = [f"{place}/entrypoint.sh", "echo", "-m", "distill_dynamics", "fit", "--runs_dir=runs"]

        def run():
            return subprocess.run(
                command, cwd=place, env=environment, user=65534, capture_output=True, text=True
            )

        done = run()
        assert (done.returncode, done.stdout) == (78, "")
        assert "uid 65534 cannot write to runs" in done.stderr
        runs.chmod(0o777)
        done = run()
        assert (done.returncode, done.stdout) == (0, "-m distill_dynamics fit --runs_dir=runs\n")


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


ASKED = ["--trainer.accelerator", "gpu"]


@pytest.mark.parametrize("asked", [ASKED, ["--trainer.accelerator=cuda"]])
def test_gpus_that_are_asked_for_and_are_not_there_stop_fit(container, asked):
    if shutil.which("nvidia-smi", path="/usr/bin:/bin"):
        pytest.skip("this machine has a driver of its own")
    status, out, lines = container.run(*FIT, *asked)
    assert (status, out) == (78, "")
    assert len(lines) == 1
    assert f"{' '.join(asked).replace('=', ' ')}, but no GPU" in lines[0]
    assert "--gpus all" in lines[0]

    assert container.run("python", "report", *asked)[0] == 0


@pytest.mark.parametrize("name", ["NVIDIA_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"])
def test_what_an_image_has_in_its_environment_asks_for_nothing(container, name):
    """CUDA's base images say NVIDIA_VISIBLE_DEVICES=all; the configuration may say accelerator: cpu."""
    container.environment[name] = "all"
    status, out, lines = container.run(*FIT)
    assert status == 0
    assert out.startswith(SAID)
    assert len(lines) == 1


@pytest.mark.parametrize("options", [["--trainer.accelerator", "cpu"], ["--trainer.accelerator=cpu"]])
def test_a_run_that_is_to_be_on_the_cpu_hears_nothing_of_gpus(container, options):
    assert container.run(*FIT, *options)[::2] == (0, [])
    assert container.run(*FIT, *ASKED, *options)[::2] == (0, [])  # the last one counts


def failing(container, asked):
    """What is said where the GPU cannot be used: a note, and with `asked` a reason to refuse."""
    status, out, lines = container.run(*FIT)
    assert status == 0
    assert out.startswith(SAID)
    (note,) = lines
    status, out, lines = container.run(*FIT, *asked)
    assert (status, out) == (78, "")
    assert lines == [note.replace("no GPU", "--trainer.accelerator gpu, but no GPU", 1)]
    return note


def test_a_driver_that_fails_is_told_in_its_own_words(container):
    words = "Failed to initialize NVML: Driver/library version mismatch"
    container.fake("nvidia-smi", f"echo '{words}'\necho more\nexit 18")
    line = failing(container, ASKED)
    assert words in line
    assert "more" not in line


def test_gpus_that_pytorch_cannot_use_are_told_in_its_words(container):
    container.gpus(8)
    reason = "RuntimeError: The NVIDIA driver on your system is too old (found version 12020)."
    container.fake(
        "python",
        f'case "$*" in *torch.cuda*) echo Traceback >&2; echo "{reason}" >&2; exit 1 ;; esac\necho "ran: $*"',
    )
    line = failing(container, ASKED)
    assert line.endswith(reason)
    assert "580.65.06" in line


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
