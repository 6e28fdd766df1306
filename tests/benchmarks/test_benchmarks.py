"""That the benchmarks run; how fast anything is only a quiet machine can say (`make bench`)."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.parametrize("name", ["step", "cache", "probe", "conflict", "memory", "analyze"])
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
