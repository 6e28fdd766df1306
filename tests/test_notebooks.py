import os
import re
import tempfile
from dataclasses import replace
from pathlib import Path

import nbclient
import nbformat
import pytest

from distill_dynamics.cli.fit_summary import terminal_signature_rows
from distill_dynamics.dynamics import Profile
from distill_dynamics.report.records import Run
from distill_dynamics.report.tables import evolution_rows
from distill_dynamics.runs.profiles import RunProfiles
from distill_dynamics.tables import accuracy_rows, gap_rows, signature_rows, spectrum_rows

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
TEACHER = ROOT / "distill_dynamics" / "weights" / "cait_fashion_mnist.npz"


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


def headings(in_terminal):
    """The header row of every table, by its first cell: of the page, or as `fit` prints it."""
    teacher = Profile.load(TEACHER)
    first, second = (replace(teacher, epoch=epoch) for epoch in (1, 2))
    profiles = RunProfiles([first, second], teacher, None)
    run = Run("r", "r", Path("r"), "fit", profiles)
    made = [
        accuracy_rows([{"epoch": 1.0, "val/acc1": 50.0}]),
        (terminal_signature_rows if in_terminal else signature_rows)(profiles.named()),
        spectrum_rows(profiles.named()),
        gap_rows(profiles),
        evolution_rows([run]),
    ]
    return {rows[0][0]: rows[0] for rows in made}


@pytest.mark.parametrize("path", [*NOTEBOOKS, ROOT / "README.md"], ids=lambda path: path.stem)
def test_tables_that_are_shown_have_the_headings_of_today(path):
    text = path.read_text()
    if path.suffix == ".ipynb":
        outputs = [o for cell in cells(nbformat.read(path, as_version=4)) for o in cell.outputs]
        text = "\n".join(output.get("text", "") for output in outputs)
    today, seen = headings(path.suffix == ".md"), set()
    for line in text.splitlines():
        row = tuple(re.split(r"\s{2,}", line.strip()))
        if row[0] in today:
            assert row == today[row[0]], line
            seen.add(row[0])
    assert len(seen) >= 2


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
