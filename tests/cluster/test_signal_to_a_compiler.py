import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from conftest import program
from test_fit import assert_same, checkpoint
from test_restarts import descendants, send, starts

from distill_dynamics.signals import STOP, compilers_ignore_signals

HAS_COMPILER = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")


def compiled(seen):
    """Doubles a tensor, with a backend that starts a process, as torch's own starts compilers."""

    def backend(graph, inputs):
        with subprocess.Popen(["grep", "SigBlk", "/proc/self/status"], stdout=subprocess.PIPE) as child:
            blocked = int(child.communicate()[0].split()[1], 16)
        seen.append([bool(blocked >> number - 1 & 1) for number in STOP])
        return graph.forward

    return torch.compile(lambda x: x + x, backend=backend)


def test_what_a_compiler_starts_does_not_hear_the_signals_that_stop_a_run():
    seen, before = [], signal.pthread_sigmask(signal.SIG_BLOCK, [])
    x = torch.ones(2)
    with compilers_ignore_signals():
        compiled(seen)(x)
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before  # the run itself hears them again
    compiled(seen)(x)
    assert seen == [[True, True], [False, False]]


def test_older_versions_of_torch_do_not_say_what_is_compiled():
    """2.6 calls back without arguments."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    with compilers_ignore_signals():
        handler = torch._dynamo.callback_handler
        handler.start_callbacks[-1]()
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
        handler.end_callbacks[-1]()
        assert blocked == before | set(STOP)
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


@pytest.mark.slow
@pytest.mark.skipif(not HAS_COMPILER, reason="torch.compile needs a C++ compiler on a CPU")
def test_a_signal_that_reaches_a_compiler_too_stops_the_run_and_does_not_break_it(experiment, tmp_path):
    config = experiment(
        model__teacher=None,
        model__terms={},
        model__alpha=0.0,
        model__compile=True,
        model__student__timm_kwargs__depth=1,
        probe__every_n_epochs=0,
    )
    run_dir = tmp_path / "runs" / "r"

    def started(name):
        command = program("fit", "--config", config, "--name", name, "--ckpt_path", "auto")
        command["env"] |= {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
        return subprocess.Popen(**command, stderr=subprocess.PIPE)

    def kernels(pids):
        """Compilers at work on one of the model's: what came before tries out what the compiler can do."""
        for pid in pids:
            try:
                command = Path(f"/proc/{pid}/cmdline").read_text()
            except OSError:
                continue
            if ".main.cpp" in command and "cc1plus" in command:
                yield pid

    process = started("r")
    while not list(kernels(reached := descendants(process.pid))):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    send(reached, signal.SIGTERM)
    error = process.communicate(timeout=240)[1]
    assert process.returncode == 75, error
    assert "asked to stop in epoch 1 after step 1" in error
    assert starts(run_dir)[-1]["ended"]["preempted"]
    for name in ("r", "whole"):
        process = started(name)
        assert process.wait(240) == 0, process.stderr.read()
    for part in ("state_dict", "optimizer_states"):
        assert_same(checkpoint(run_dir)[part], checkpoint(run_dir.with_name("whole"))[part])
