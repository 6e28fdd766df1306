"""That the benchmarks run; how fast anything is only a quiet machine can say (`make bench`)."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from table import Row

HERE = Path(__file__).parent


@pytest.mark.parametrize(
    ("ratios", "target", "at_least", "interval", "verdict"),
    [
        ([0.9], 1, False, (0.9, 0.9), "met"),
        ([0.9, 1.1, 0.95], 1, False, (0.9, 1.1), "level"),
        ([1.2, 1.1, 1.3], 1, False, (1.1, 1.3), "missed"),
        ([30, 50, 45], 40, True, (30, 50), "level"),
        # Of 25 the 8th and the 18th: between them the median lies with a chance of 95.7 % (binomial).
        (range(1, 26), 20, False, (8, 18), "met"),
    ],
)
def test_an_interval_and_what_it_says_of_a_target(ratios, target, at_least, interval, verdict):
    row = Row("", list(ratios), target, at_least)
    assert (row.interval, row.verdict) == (interval, verdict)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["step", "teacher", "cache", "probe", "conflict", "memory", "analyze", "help", "methods", "feed"]
)
def test_a_small_variant_runs(name, tmp_path):
    command = [sys.executable, HERE / "bench.py", "--small", "--only", name, "--out", tmp_path]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert rows
    for row in rows:
        assert all(ratio > 0 for ratio in row["rounds"])
        assert row["what"] in done.stdout
        assert row["what"] in (tmp_path / "results.md").read_text()
    assert (tmp_path / "results.png").stat().st_size > 1000
