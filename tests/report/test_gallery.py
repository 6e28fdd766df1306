"""What a picture's caption says of it."""

import made
import pytest

from distill_dynamics.report.gallery import gallery
from distill_dynamics.report.runs import load_runs
from distill_dynamics.report.study import Study


@pytest.mark.parametrize(("floors", "told"), [({"f": 0.25}, True), ({"f": 0.0}, False), ({}, False)])
def test_a_caption_tells_of_a_floor_where_one_is_drawn(tmp_path, floors, told):
    run = made.write_run(tmp_path / "r", starts=[made.start(floors=floors)])
    (picture,) = (one for one in gallery(Study(load_runs([run]))) if one.name == "training_curves")
    assert ("dashed what no linear map" in picture.caption) is told


def test_what_was_not_validated_is_not_told_of(tmp_path):
    rows = [{"epoch": n, "step": n, "train/loss": 1.0, "train/loss_f": 1.0 / n} for n in (1, 2)]
    floor = [made.start(floors={"f": 0.1})]
    dashed = "Each loss term, dashed what no linear map from the student can go below"
    validated = [{**row, "val/acc1": 50.0} for row in rows]
    for name, metrics, starts, told in (
        ("plain", rows, None, "Each loss term."),
        ("floor", rows, floor, f"{dashed}."),
        ("both", validated, floor, f"{dashed}, and top-1 on the validation set beside the teacher's."),
    ):
        study = Study(load_runs([made.write_run(tmp_path / name, metrics, starts=starts)]))
        (picture,) = [one for one in gallery(study) if one.name == "training_curves"]
        assert picture.caption == told
