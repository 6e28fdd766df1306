"""Builds by processes of their own: several ranks, and one that is killed."""
# ruff: noqa: F811 - fixtures are imported

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from caching import AUGMENT, RGB, folder, same_cache  # noqa: F401 - fixtures

pytestmark = pytest.mark.slow


@pytest.fixture
def config(experiment, folder):
    """YAMLs of `caching.Setup`."""
    losses = "distill_dynamics.losses"
    terms = {
        "both": {"loss": {"class_path": f"{losses}.SpectralKD"}, "first": 1, "last": 1},
        "projector": {"loss": {"class_path": f"{losses}.ProjectorKD"}, "last": 2},
    }
    data = {
        "data_dir": str(folder), "image_size": 28, "batch_size": 16, "num_workers": 0,
        "eval_batch_size": 7, "views": 2, "repeats": 3, "augment": AUGMENT,
    }  # fmt: skip

    def write(name="cached", **changes):
        return experiment(
            name,
            **{
                "model__student__timm_kwargs": {**RGB, "depth": 3},
                "model__teacher__timm_kwargs": {**RGB, "embed_dim": 24, "depth": 12},
                "model__terms": terms,
                "data": {"class_path": "distill_dynamics.data.ImageFolder", "init_args": data},
                **changes,
            },
        )

    return write


PROGRAM = """
import sys, time
from distill_dynamics.cli.main import main
from distill_dynamics.teacher_cache import files, layout, plan

least, pause = int(sys.argv[1]), float(sys.argv[2])
layout.MIN_ROWS = least
plan.operations = lambda views, layers, logits: layers[-1]
write = files.Writer.write

def slowly(self, rows):
    time.sleep(pause)
    write(self, rows)

files.Writer.write = slowly
main(sys.argv[3:])
"""

TWO = ("--trainer.devices", "2", "--trainer.strategy", "ddp")


@pytest.fixture
def build(tmp_path):
    """Starts a build in a process group of its own."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)

    def start(config, out, *args, least=25, pause=0.0):
        command = [sys.executable, program, str(least), str(pause)]
        return subprocess.Popen(
            [*command, "cache-teacher", "--config", config, "--out", out, *args],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    return start


def ended(process):
    out, error = process.communicate(timeout=200)
    assert process.returncode == 0, error
    return out


def plan(cache):
    return json.loads((cache / "cache.json").read_text())


def test_two_ranks_build_what_one_builds(config, tmp_path, build):
    # A limit is of batches a rank: two ranks would measure the teacher on twice the images.
    settings = {"trainer__limit_val_batches": 1.0, "trainer__use_distributed_sampler": True}
    settings["data__init_args__eval_batch_size"] = 8
    given = config(**settings)
    # 15 images a step cannot be shared by two; nor do they have to be.
    odd = config("odd", **settings, data__init_args__global_batch=15)
    one = build(given, tmp_path / "one")
    assert ended(build(odd, tmp_path / "two", *TWO)).count("0 of 10 blocks are there") == 1
    ended(one)
    same_cache(tmp_path / "one", tmp_path / "two")
    assert plan(tmp_path / "one") == plan(tmp_path / "two")
    assert "are what was written" in ended(build(given, tmp_path / "two", *TWO, "--verify"))


def test_a_rank_may_have_nothing_to_do(config, tmp_path, build):
    given = config(data__init_args__views=1)
    assert "0 of 1 blocks are there" in ended(build(given, tmp_path / "two", *TWO, least=256))
    assert "1 of 1 blocks are there" in ended(build(given, tmp_path / "two", *TWO, least=256))


def test_one_rank_goes_on_where_two_were_killed(config, tmp_path, build):
    given = config(data__init_args__eval_batch_size=8)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    killed = build(given, cut, *TWO, pause=8.0)
    ended(build(given, whole))
    until = time.monotonic() + 120
    while len(list(cut.glob("done/*"))) < 1:
        assert time.monotonic() < until
        time.sleep(0.05)
    second = build(given, cut)
    assert "another cache-teacher is building" in second.communicate(timeout=100)[1]
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    before = {path: path.stat().st_mtime_ns for path in cut.glob("done/*.json")}
    assert 1 <= len(before) < 10
    ended(build(given, cut))
    assert {path: path.stat().st_mtime_ns for path in before} == before
    same_cache(whole, cut)
