import io
import math
import warnings

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from distill_dynamics.report import figures

ROWS = [
    {"epoch": 0.0, "teacher/acc1": 90.0, "dynamics/epoch": 0.0},
    {"epoch": 1.0, "train/loss": 3.0, "train/loss_ce": 2.2, "train/loss_a": 0.03},
    {"epoch": 2.0, "train/loss": 2.0, "train/loss_ce": 1.9, "train/loss_a": 0.02},
    {"epoch": 3.0, "train/loss": 1.0, "train/loss_ce": 1.5, "train/loss_a": 0.01},
]
ROWS[1] |= {"val/loss": 2.0, "val/acc1": 40.0}
ROWS[3] |= {"val/loss": 1.4, "val/acc1": 60.0}


def lines(ax):
    return {line.get_label(): line for line in ax.lines}


def render(figure):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FigureCanvasAgg(figure)
        figure.savefig(io.BytesIO(), format="png")


def test_terms_and_accuracy_against_epoch_with_the_teacher_dash_dotted():
    figure = figures.training_curves(ROWS)
    losses, top1 = figure.axes
    drawn = lines(losses)
    assert list(drawn) == ["train/loss_ce", "train/loss_a", "val/loss"]  # the weighted total is no term
    np.testing.assert_array_equal(drawn["train/loss_a"].get_xydata(), [[1, 0.03], [2, 0.02], [3, 0.01]])
    np.testing.assert_array_equal(drawn["val/loss"].get_xydata(), [[1, 2.0], [3, 1.4]])
    assert len({line.get_color() for line in losses.lines}) == 3
    assert losses.get_yscale() == "log"  # 2.2 / 0.01
    drawn = lines(top1)
    np.testing.assert_array_equal(drawn["val/acc1"].get_xydata(), [[1, 40.0], [3, 60.0]])
    assert drawn["teacher/acc1"].get_linestyle() == "-."
    assert set(drawn["teacher/acc1"].get_ydata()) == {90.0}
    assert top1.get_yscale() == "linear"
    render(figure)
    for ax in figure.axes:
        assert ax.get_legend().get_window_extent().x0 >= ax.get_window_extent().x1  # covers no data
        assert ax.get_legend().get_window_extent().x1 <= figure.bbox.x1


def test_averaged_weights_beside_the_raw_ones():
    rows = [*ROWS[:3], {**ROWS[3], "val/acc1_ema": 65.0}]
    losses, top1 = figures.training_curves(rows).axes
    drawn = lines(top1)
    assert list(drawn) == ["val/acc1", "val/acc1_ema", "teacher/acc1"]
    np.testing.assert_array_equal(drawn["val/acc1_ema"].get_xydata(), [[3, 65.0]])
    assert drawn["val/acc1_ema"].get_color() != drawn["val/acc1"].get_color()
    assert "val/acc1_ema" not in lines(losses)


def test_losses_of_one_size_or_below_zero_have_a_linear_axis():
    same = [{"epoch": n, "train/loss_ce": 2.0 - n / 10} for n in range(1, 4)]
    assert figures.training_curves(same).axes[0].get_yscale() == "linear"
    below = [{**row, "train/loss_mine": -1e-3} for row in same]
    assert figures.training_curves(below).axes[0].get_yscale() == "linear"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_run_that_diverged_is_drawn_as_far_as_it_is_finite(value):
    rows = [{"epoch": 1.0, "train/loss_ce": 2.0, "val/acc1": 10.0}, {"epoch": 2.0, "train/loss_ce": value}]
    figure = figures.training_curves(rows)
    np.testing.assert_array_equal(figure.axes[0].lines[0].get_ydata(), [2.0, np.nan])
    render(figure)
    figure = figures.training_curves([{"epoch": 1.0, "train/loss_ce": value}])
    assert [[text.get_text() for text in ax.texts] for ax in figure.axes] == [["not measured"]] * 2
    render(figure)


def test_a_term_may_have_any_name():
    rows = [{"epoch": 1.0, "train/loss_$\\x$": 1.0, "val/acc1": 2.0}]
    figure = figures.training_curves(rows)
    render(figure)
    assert "train/loss_$\\x$" in figure.axes[0].get_legend().get_texts()[0].get_text().replace(r"\$", "$")


def test_nothing_to_draw_is_an_error():
    with pytest.raises(ValueError, match="no training to draw"):
        figures.training_curves(ROWS[:1])
