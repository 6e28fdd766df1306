"""A curve of a whole set of images, the effective rank: its figures, beside Profiles that lack it."""

import numpy as np
import pytest
from drawn import bands, legend_labels, notes, png, profile, teacher

from distill_dynamics import figures
from distill_dynamics.runs.profiles import RunProfiles

ERRORS = np.linspace(0.1, 1.2, 12)


def ranked(epoch, layers=12, **changed):
    values = {"effective_rank": np.linspace(9, 3, layers) + (epoch or 0)}
    return profile(epoch, layers, **values, errors={"effective_rank": np.resize(ERRORS, layers)}, **changed)


@pytest.mark.parametrize("bootstrap", [False, True])
def test_its_band_is_the_jackknife_s_error_and_never_called_a_bootstrap(bootstrap):
    figure = figures.curve_evolution("effective_rank", [ranked(0)], bootstrap=bootstrap)
    ax = figure.axes[0]
    (line,), (band,) = ax.lines, bands(ax)
    np.testing.assert_allclose(line.get_ydata(), np.linspace(9, 3, 12))
    edges = band.get_paths()[0].vertices[:, 1]
    assert (edges.min(), edges.max()) == (pytest.approx(3 - 1.2), pytest.approx(9.1))
    assert "standard error" in notes(figure)
    assert "bootstrap" not in notes(figure)
    assert "bins" not in notes(figure).lower()
    assert ax.get_ylabel() == "Effective rank"
    assert ax.get_title("left") == "Effective rank by block"
    assert png(figure)


def test_who_lacks_it_is_left_out():
    figure = figures.curve_evolution("effective_rank", [ranked(0), ranked(3)], teacher(12), profile(3))
    assert len(figure.axes[0].lines) == 2
    assert legend_labels(figure) == []
    some = figures.curve_evolution("effective_rank", [profile(0), ranked(3)])
    assert len(some.axes[0].lines) == 1
    both = figures.curve_by_method(
        "effective_rank", {"a": RunProfiles([profile(0), ranked(1)], teacher(12), profile(2))}
    )
    (ax,) = both.axes
    assert (ax.get_title("left"), len(ax.lines)) == ("a", 1)
    with pytest.raises(ValueError, match="no Profiles"):
        figures.curve_by_method("effective_rank", {"a": RunProfiles([profile(0)], None, None)})


def test_a_run_of_old_profiles_has_no_figure_of_it():
    assert "effective_rank_evolution" not in figures.run_figures(
        [profile(0), profile(3)], teacher(), profile(3)
    )
    assert "effective_rank_evolution" in figures.run_figures([profile(0), ranked(3)])


def test_several_runs_share_a_panel():
    figure = figures.curve_by_block(
        "effective_rank", {"a": ranked(1), "b": ranked(2, 24)}, [ranked(None, 24)]
    )
    (ax,) = figure.axes
    assert ax.get_xlabel().startswith("Relative depth")
    assert len(ax.lines) == 3
    assert png(figure)
