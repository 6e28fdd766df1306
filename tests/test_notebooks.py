import os
import re
import tempfile
from pathlib import Path

import nbclient
import nbformat
import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def cells(notebook, kind="code"):
    return [cell for cell in notebook.cells if cell.cell_type == kind]


def test_there_are_two():
    assert [path.name for path in NOTEBOOKS] == ["reading_a_run.ipynb", "u_shape.ipynb"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_committed_notebook_was_run_from_top_to_bottom(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    counts = [cell.execution_count for cell in cells(notebook)]
    assert counts == list(range(1, len(counts) + 1))
    outputs = [output for cell in cells(notebook) for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 4
    text = path.read_text()
    for folder in (ROOT, Path.home(), tempfile.gettempdir()):
        assert f"{folder}/" not in text, "a path of the machine it was run on"
    assert not any(re.search(r"^\s*(def|class) ", cell.source, re.M) for cell in cells(notebook))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "notebooks").mkdir()
    notebook = nbformat.read(path, as_version=4)
    for cell in cells(notebook):
        cell.outputs, cell.execution_count = [], None
    runner = nbclient.NotebookClient(
        notebook, timeout=1200, resources={"metadata": {"path": str(tmp_path / "notebooks")}}
    )
    runner.execute()  # raises where a cell does
    committed = nbformat.read(path, as_version=4)
    for made, stored in zip(cells(notebook), cells(committed), strict=True):
        kinds = [[output.output_type for output in cell.outputs] for cell in (made, stored)]
        assert ("display_data" in kinds[0]) == ("display_data" in kinds[1]), made.source
