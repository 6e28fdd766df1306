"""Whether the last block's entropy rose again: Student's t, as scipy has it, decides on few images."""

import made
import numpy as np
import pytest
from scipy import stats

from distill_dynamics.dynamics.signature import rebound
from distill_dynamics.report.runs import load_runs
from distill_dynamics.report.tables import evolution_rows


def probes(last, errors, images=4):
    """Probes of epochs 1, 2, ... with these last entropies; the end is so many errors above the lowest."""
    wobble = np.linspace(-1, 1, images)
    wobble *= (max(last) - min(last)) / errors / (wobble.std(ddof=1) / np.sqrt(images))
    found = []
    for epoch, value in enumerate(last, start=1):
        profile = made.profile(epoch, [3.0, 2.5, value], images=images)
        profile.curves["entropy"] = np.tile(profile.entropy, (images, 1))
        found.append(profile)
    found[-1].entropy_images[:, -1] += wobble
    return found


@pytest.mark.parametrize("images", [4, 32])
@pytest.mark.parametrize("epochs", [2, 3, 6])
def test_a_rebound_is_claimed_beyond_students_t_for_the_probes_it_was_picked_from(images, epochs):
    last = [1.0, *[0.5] * (epochs - 2), 1.5] if epochs > 2 else [1.0, 1.5]
    t = stats.t.ppf(1 - 0.025 / (epochs - 1), images - 1)
    for errors, claimed in ((0.9 * t, False), (1.1 * t, True)):
        found = rebound(probes(last, errors, images))
        assert found.value / found.error == pytest.approx(errors)
        assert found.certain is claimed


def test_two_errors_on_four_images_are_no_rise(tmp_path):
    """Nor would they be of normal noise: 2.2 errors are beyond 1.96, and within t's 3.18."""
    for errors, rises in ((2.2, "–"), (3.3, "1")):
        folder = tmp_path / str(errors)
        files = {f"student_epoch_{p.epoch:04d}": p for p in probes([0.5, 1.0], errors)}
        (run,) = load_runs([made.write_run(folder, **files)])
        header, row = evolution_rows([run])
        assert dict(zip(header, row, strict=True))["rises from"] == rises
