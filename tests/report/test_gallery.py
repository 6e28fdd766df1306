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
