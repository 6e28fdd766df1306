"""A statistic is a file in `measures/` and a line of the list: nothing else has to know of it."""

import json
import subprocess
import sys

import pytest

ADDED = """
import json, sys, types
import torch
from distill_dynamics.dynamics import statistics
from distill_dynamics.dynamics.statistics import Statistic

negatives = types.ModuleType("negatives")
negatives.share = lambda x: (x < 0).flatten(1).float().mean(1)
volume = types.ModuleType("volume")
volume.largest = lambda eigenvalues: eigenvalues[..., -1] / eigenvalues.sum(-1)
likeness = types.ModuleType("likeness")
likeness.widths = lambda xx, xy, yy: torch.tensor(xy.shape[0] / xy.shape[1])
for module in (negatives, volume, likeness):
    sys.modules[f"distill_dynamics.dynamics.measures.{module.__name__}"] = module
more = (
    Statistic("negatives", "images", "negatives.share", title="Share below zero", axis="Share"),
    Statistic("widths", "pair", "likeness.widths", title="Widths", axis="Ratio"),
    Statistic("first_axis", "set", "volume.largest", title="First axis", axis="Share of variance"),
)
statistics.STATISTICS += more
statistics.SHOWN += more

from distill_dynamics import figures
from distill_dynamics.callbacks import probe
from distill_dynamics.dynamics import Profile, profile_model
from distill_dynamics.dynamics.profiler import compare_models
from distill_dynamics.report.gallery import gallery
from distill_dynamics.report.records import Run
from distill_dynamics.report.study import Study
from distill_dynamics.runs.profiles import RunProfiles
from distill_dynamics.tables import OTHER_CURVES, curve_rows


class Model:
    name, layers, channels = "m", ["a", "b"], [4, 4]

    def parameters(self):
        return iter(())

    def __call__(self, images, layers=(), logits=True):
        return types.SimpleNamespace(maps=[images, images.abs()])


images = torch.arange(-32.0, 32).view(4, 4, 2, 2)
profile = profile_model(Model(), images, epoch=1)
profile.pairs = compare_models(Model(), Model(), images, images)
profile.save(sys.argv[1] + "/p.npz")
profile = Profile.load(sys.argv[1] + "/p.npz")
run = Run("r", "r", None, "fit", RunProfiles([profile], None, None))
said = {
    "negatives": profile.curves["negatives"].tolist(),
    "metrics": sorted(probe._scalars("student", profile)),
    "figures": sorted(figures.run_figures([profile])),
    "pictures": [picture.title for picture in gallery(Study([run]))],
    "widths": profile.pairs["widths"].tolist(),
    "tables": [rows[0][0] for curve in OTHER_CURVES if (rows := curve_rows([("x", profile)], curve))],
    "first_axis": [float(profile.curve("first_axis")[0]), float(profile.curve_se("first_axis")[0])],
}
try:
    from distill_dynamics.report.dashboard import build
    said["sections"] = [section.name for section in build("team", "project").sections]
except ValueError:
    pass
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("profile"))
    run = subprocess.run(
        [sys.executable, "-c", ADDED, folder], capture_output=True, text=True, check=True
    ).stdout
    return json.loads(run.splitlines()[-1])


def test_it_is_measured_saved_and_read(said):
    assert said["negatives"] == [[1, 0], [1, 0], [0, 0], [0, 0]]
    assert said["widths"] == [[1, 1], [1, 1]]
    value, error = said["first_axis"]
    assert 0.25 < value <= 1
    assert error >= 0


def test_it_is_logged_by_block(said):
    wanted = {
        f"dynamics/student/{name}/block_0{n}"
        for name in ("negatives", "first_axis", "widths")
        for n in (1, 2)
    }
    assert wanted <= set(said["metrics"])
    assert "dynamics/student/median/block_01" not in said["metrics"]  # kept, and not shown


def test_it_is_drawn_and_told_of(said):
    assert {"negatives_evolution", "first_axis_evolution", "entropy_evolution"} <= set(said["figures"])
    assert {"widths_evolution", "widths_heatmap"} <= set(said["figures"])
    assert {"Share below zero by block", "First axis by block", "Widths by block"} <= set(said["pictures"])
    assert "Widths, each pair of blocks" in said["pictures"]
    listed = ["effective rank", "rank at 95 % energy", "CKA with the teacher"]
    assert said["tables"] == [*listed, "share below zero", "widths", "first axis"]


def test_the_dashboard_has_a_section_of_it(said):
    pytest.importorskip("wandb_workspaces")
    assert {"Share below zero", "First axis", "Widths"} <= set(said["sections"])
