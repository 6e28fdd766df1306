import io
import math
import warnings

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from distill_dynamics import figures

ROWS = [
    {"epoch": 0.0, "teacher/acc1": 90.0, "dynamics/epoch": 0.0},
    {"epoch": 1.0, "train/loss": 3.0, "train/loss_ce": 2.2, "train/loss_a": 0.03},
    {"epoch": 2.0, "train/loss": 2.0, "train/loss_ce": 1.9, "train/loss_a": 0.02},
    {"epoch": 3.0, "train/loss": 1.0, "train/loss_ce": 1.5, "train/loss_a": 0.01},
]
ROWS[1] |= {"val/loss": 2.0, "val/acc1": 40.0}
ROWS[3] |= {"val/loss": 1.4, "val/acc1": 60.0}


def panels(figure):
    return {ax.get_title("left").replace(r"\$", "$"): ax for ax in figure.axes}


def render(figure):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FigureCanvasAgg(figure)
        figure.savefig(io.BytesIO(), format="png")


def test_a_panel_a_term_in_the_order_of_the_loss_with_the_teacher_dash_dotted():
    figure = figures.training_curves({"r": ROWS})
    drawn = panels(figure)
    assert list(drawn) == ["Cross-entropy", "Term a", "Validation loss", "Top-1"]  # the total is no term
    np.testing.assert_array_equal(drawn["Term a"].lines[0].get_xydata(), [[1, 0.03], [2, 0.02], [3, 0.01]])
    np.testing.assert_array_equal(drawn["Validation loss"].lines[0].get_xydata(), [[1, 2.0], [3, 1.4]])
    top1, teacher = drawn["Top-1"].lines
    np.testing.assert_array_equal(top1.get_xydata(), [[1, 40.0], [3, 60.0]])
    assert teacher.get_linestyle() == "-."
    assert set(teacher.get_ydata()) == {90.0}
    assert drawn["Top-1"].get_yscale() == "linear"
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["Teacher"]  # a run alone needs no name
    render(figure)


def test_a_weight_has_the_panel_behind_its_loss_from_0():
    rows = [{**row, "train/weight_a": 100 * row["train/loss_a"] - 1} for row in ROWS[1:]]
    figure = figures.training_curves({"r": rows})
    drawn = panels(figure)
    assert list(drawn)[1:3] == ["Term a", "Weight: term a"]
    np.testing.assert_allclose(drawn["Weight: term a"].lines[0].get_ydata(), [2, 1, 0])
    assert drawn["Weight: term a"].get_ylabel() == "β"
    assert drawn["Weight: term a"].get_ylim()[0] == 0
    render(figure)


def test_one_epoch_has_one_tick():
    figure = figures.training_curves({"r": ROWS[:2]})
    render(figure)
    for ax in figure.axes:
        low, high = ax.get_xlim()
        assert [tick for tick in ax.get_xticks() if low <= tick <= high] == [1]


def test_gates_are_drawn_by_the_teachers_block():
    gates = {"a": {"x": [(2, 4, 0.1), (1, 2, 0.9)]}, "b": {"x": [(1, 2, 1.0)], "y": [(1, 1, 0.5)]}}
    figure = figures.gates_by_block(gates)
    drawn = panels(figure)
    assert list(drawn) == ["x", "y"]
    np.testing.assert_array_equal(drawn["x"].lines[0].get_xydata(), [[2, 0.9], [4, 0.1]])
    assert drawn["x"].lines[0].points[1] == "student block 2, teacher block 4"
    assert len(drawn["y"].lines) == 1
    render(figure)
    with pytest.raises(ValueError, match="no gates"):
        figures.gates_by_block({"a": {}})


def test_a_run_has_one_look_in_all_panels_and_none_where_it_lacks_the_metric():
    more = [{**row, "train/loss_b": 1.0, "val/acc1_ema": 70.0} for row in ROWS[1:]]
    figure = figures.training_curves({"a": ROWS, "b": more})
    drawn = panels(figure)
    assert list(drawn)[1:3] == ["Term a", "Term b"]
    assert list(drawn)[-1] == "Top-1 of averaged weights (EMA)"
    both, (only,) = drawn["Term a"].lines, drawn["Term b"].lines
    assert only.get_color() == both[1].get_color() != both[0].get_color()
    averaged, level = drawn["Top-1 of averaged weights (EMA)"].lines
    assert set(averaged.get_ydata()) == {70.0}
    assert level.get_linestyle() == "-."
    assert drawn["Top-1 of averaged weights (EMA)"].get_ylabel() == "Top-1 (%)"
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b", "Teacher"]


def test_a_floor_that_runs_share_is_grey_and_others_have_the_look_of_their_run():
    def floors(**by_run):
        figure = figures.training_curves({"r": ROWS, "s": ROWS}, floors=by_run)
        lines = panels(figure)["Term a"].lines
        runs = {line.meta.run: line.get_color() for line in lines if hasattr(line, "meta")}
        return runs, {line.get_ydata()[0]: line.get_color() for line in lines if not hasattr(line, "meta")}

    assert floors(r={"a": 0.01}, s={"a": 0.01})[1] == {0.01: "0.4"}
    runs, apart = floors(r={"a": 0.01}, s={"a": 0.015})
    assert apart == {0.01: runs["r"], 0.015: runs["s"]}
    assert floors(r={"a": 0.0})[1] == {}


def test_a_loss_of_wide_span_has_a_log_axis_one_of_one_size_or_below_zero_a_linear_one():
    def scale(*values):
        rows = [{"epoch": float(n), "train/loss_ce": value} for n, value in enumerate(values, start=1)]
        return figures.training_curves({"r": rows}).axes[0].get_yscale()

    assert scale(2.2, 1.0, 0.01) == "log"
    assert scale(2.2, 1.9, 1.5) == "linear"
    assert scale(2.2, 1.9, -0.001) == "linear"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_run_that_diverged_is_drawn_as_far_as_it_is_finite(value):
    rows = [{"epoch": 1.0, "train/loss_ce": 2.0, "val/acc1": 10.0}, {"epoch": 2.0, "train/loss_ce": value}]
    figure = figures.training_curves({"r": rows})
    np.testing.assert_array_equal(figure.axes[0].lines[0].get_ydata(), [2.0, np.nan])
    render(figure)
    figure = figures.training_curves({"r": [{"epoch": 1.0, "train/loss_ce": value}]})
    assert [[text.get_text() for text in ax.texts] for ax in figure.axes] == [["not measured"]]
    render(figure)


def test_a_term_may_have_any_name():
    figure = figures.training_curves({"r": [{"epoch": 1.0, "train/loss_$\\x$": 1.0, "val/acc1": 2.0}]})
    render(figure)
    assert "Term $\\x$" in panels(figure)


def test_nothing_to_draw_is_an_error():
    with pytest.raises(ValueError, match="no training to draw"):
        figures.training_curves({"r": ROWS[:1]})
