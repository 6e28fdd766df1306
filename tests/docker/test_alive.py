"""docker/alive.sh, which Kubernetes asks whether a run lives, on a run that does and one that does not."""

import signal
import subprocess
import time

import pytest
from conftest import ROOT, program


def alive(run_dir):
    done = subprocess.run(
        [ROOT / "docker" / "alive.sh", run_dir], capture_output=True, text=True, timeout=20, check=False
    )
    assert not done.stderr
    return done.returncode, done.stdout


@pytest.mark.slow
def test_a_run_is_alive_while_its_process_goes_on(experiment, tmp_path):
    slow = {"class_path": "test_restarts.Slow", "init_args": {"seconds": 3}}
    config = experiment(trainer__callbacks=[slow], trainer__limit_train_batches=40, probe__every_n_epochs=0)
    run_dir = tmp_path / "runs" / "r"
    status, line = alive(run_dir)
    assert (status, line) == (1, f"no {run_dir}/.running: the run has not begun, or has ended\n")

    process = subprocess.Popen(
        **program("fit", "--config", config, "--name", "r"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        while not (run_dir / "training").exists():
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.1)
        assert alive(run_dir) == (0, "")
        process.send_signal(signal.SIGSTOP)
        status, line = alive(run_dir)
        assert status == 1
        assert line.endswith("the process of the run stands still\n")
        process.send_signal(signal.SIGCONT)
        time.sleep(6)  # the next beat
        assert alive(run_dir) == (0, "")
    finally:
        process.kill()
        process.wait()
    assert alive(run_dir)[0] == 1  # what a killed one has left is no heartbeat
