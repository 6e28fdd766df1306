import io
from functools import partial

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from drawn import (
    EPOCHS,
    RESNET,
    assert_legible,
    bands,
    legend_labels,
    lightness,
    notes,
    png,
    profile,
    teacher,
    tick_labels,
)
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from scipy import stats
from scripts.make_picture import make

from distill_dynamics import figures
from distill_dynamics.errors import UserError


@pytest.fixture
def students():
    return [profile(epoch) for epoch in EPOCHS]


def heatmap(students):
    return figures.entropy_heatmap({"SoftKD": students})


EVOLUTIONS = [
    (partial(figures.curve_evolution, "entropy"), "entropy"),
    (partial(figures.curve_evolution, "magnitude"), "magnitude"),
]


@pytest.mark.parametrize(("draw", "measure"), EVOLUTIONS)
def test_evolution_draws_one_line_an_epoch_in_order_of_epochs(draw, measure, students):
    ax = draw(students[::-1]).axes[0]
    assert len(ax.lines) == len(EPOCHS)
    for line, student in zip(ax.lines, students, strict=True):
        np.testing.assert_array_equal(line.get_xdata(), np.arange(1, 13))
        np.testing.assert_array_equal(line.get_ydata(), getattr(student, measure))
        assert line.get_linestyle() == "-"
    shades = [lightness(line.get_color()) for line in ax.lines]
    assert shades == sorted(shades, reverse=True)
    assert len(set(shades)) == len(EPOCHS)
    assert shades[0] < 0.75  # the first line is seen on white


@pytest.mark.parametrize(("draw", "measure"), EVOLUTIONS)
def test_evolution_bands_are_the_standard_error_over_images(draw, measure, students):
    figure = draw(students[:1])
    (band,) = bands(figure.axes[0])
    vertices = band.get_paths()[0].vertices
    error = stats.sem(getattr(students[0], f"{measure}_images"), axis=0)
    for block in (1, 7, 12):
        y = vertices[vertices[:, 0] == block][:, 1]
        middle = getattr(students[0], measure)[block - 1]
        np.testing.assert_allclose(
            [y.min(), y.max()], [middle - error[block - 1], middle + error[block - 1]], rtol=1e-12
        )
    assert "standard error" in notes(figure)


def test_one_image_has_no_band():
    figure = figures.curve_evolution("entropy", [profile(0, images=1), profile(1, images=1)])
    assert not bands(figure.axes[0])
    assert "standard error" not in notes(figure)


def test_every_epoch_is_named_on_the_colour_bar(students):
    ax, bar = figures.curve_evolution("entropy", students).axes
    assert tick_labels(bar.yaxis) == [str(epoch) for epoch in EPOCHS]
    assert bar.get_ylabel() == "Epoch"
    swatches = bar.collections[-1]
    drawn = [to_hex(color) for color in swatches.cmap(swatches.norm(bar.get_yticks()))]
    assert drawn == [to_hex(line.get_color()) for line in ax.lines]


@pytest.mark.parametrize("count", [11, 16, 31])
def test_many_epochs_keep_the_first_and_the_last_label(count):
    run = [profile(30 * n) for n in range(count)]
    bar = figures.curve_evolution("entropy", run).axes[1]
    heat = heatmap(run).axes[0]
    for labels in (tick_labels(bar.yaxis), tick_labels(heat.xaxis)):
        assert (labels[0], labels[-1]) == ("0", str(30 * (count - 1)))
        assert len(labels) <= 13


@pytest.mark.parametrize(("draw", "measure"), EVOLUTIONS)
def test_teacher_is_dash_dotted_at_matched_depth_with_its_own_blocks_on_top(draw, measure, students):
    deep = teacher()
    figure = draw(students, deep)
    ax = figure.axes[0]
    line = ax.lines[-1]
    assert line.get_linestyle() == "-."
    np.testing.assert_array_equal(line.get_ydata(), getattr(deep, measure))
    x = line.get_xdata()
    # Block t of 24 stands where the same share of the way from first to last block is.
    np.testing.assert_allclose((x - 1) / 11, np.arange(24) / 23, atol=1e-12)
    (top,) = ax.child_axes
    blocks = [int(label) for label in tick_labels(top.xaxis)]
    assert blocks[0] == 1
    assert blocks[-1] == 24
    np.testing.assert_allclose(top.get_xticks(), x[np.array(blocks) - 1])
    assert "Teacher" in top.get_xlabel()
    assert "matched depth" in top.get_xlabel()
    assert legend_labels(figure) == ["Teacher (cait_s24_224.fb_dist_in1k)"]


def test_teacher_of_the_same_depth_shares_the_axis(students):
    ax = figures.curve_evolution("entropy", students, teacher(12)).axes[0]
    assert not ax.child_axes
    np.testing.assert_array_equal(ax.lines[-1].get_xdata(), np.arange(1, 13))


def test_best_checkpoint_is_dashed_in_a_colour_of_its_own(students):
    best = profile(30)
    figure = figures.curve_evolution("entropy", students, teacher(), best)
    lines = figure.axes[0].lines
    assert len(lines) == len(EPOCHS) + 2
    (line,) = [line for line in lines if line.get_linestyle() == "--"]
    np.testing.assert_array_equal(line.get_ydata(), best.entropy)
    assert to_hex(line.get_color()) not in [to_hex(other.get_color()) for other in lines if other is not line]
    assert "Best checkpoint (epoch 30)" in legend_labels(figure)


def test_one_epoch_is_named_in_the_legend_and_needs_no_colour_bar():
    figure = figures.curve_evolution("entropy", [profile(0)])
    assert len(figure.axes) == 1
    assert legend_labels(figure) == ["deit_tiny_patch16_224, epoch 0"]
    assert legend_labels(figures.curve_evolution("entropy", [teacher()])) == ["cait_s24_224.fb_dist_in1k"]


def test_ticks_are_block_numbers_from_one(students):
    assert tick_labels(figures.curve_evolution("entropy", students).axes[0].xaxis) == [
        str(n) for n in range(1, 13)
    ]
    deep = tick_labels(figures.curve_evolution("entropy", [profile(0, 24)]).axes[0].xaxis)
    assert (deep[0], deep[-1]) == ("1", "24")
    assert len(deep) <= 13


def test_a_selection_of_blocks_keeps_its_numbers():
    ax = figures.curve_evolution("entropy", [profile(0, ["blocks.0", "blocks.5", "blocks.11"])]).axes[0]
    assert tick_labels(ax.xaxis) == ["1", "6", "12"]


def test_stages_are_called_by_name_and_many_layers_by_number():
    ax = figures.curve_evolution("entropy", [profile(0, RESNET)]).axes[0]
    assert tick_labels(ax.xaxis) == RESNET
    assert ax.get_xlabel() == "Layer"
    ax = figures.curve_evolution("entropy", [profile(0, [f"features.{i}" for i in range(7)])]).axes[0]
    assert tick_labels(ax.xaxis) == list("1234567")
    # Stages that timm calls blocks.<stage>.<block> are numbered, as in metric names.
    ax = figures.curve_evolution("entropy", [profile(0, ["blocks.0.0", "blocks.1.2", "blocks.2.2"])]).axes[0]
    assert tick_labels(ax.xaxis) == list("123")


def test_magnitudes_of_very_different_size_get_a_log_axis(students):
    assert figures.curve_evolution("magnitude", students).axes[0].get_yscale() == "linear"
    massive = teacher()
    massive.means["magnitude"] *= 100
    ax = figures.curve_evolution("magnitude", students, massive).axes[0]
    assert ax.get_yscale() == "log"
    assert "log" in ax.get_ylabel()


def test_note_on_bins_stands_where_it_is_true(students):
    several = "different bins"
    assert "global per model and epoch" in notes(figures.curve_evolution("entropy", students))
    assert several in notes(heatmap(students))
    assert several in notes(figures.overview(students))
    assert several in notes(figures.curve_evolution("entropy", students[:1], teacher()))
    assert several not in notes(figures.curve_evolution("entropy", students[:1]))
    assert several not in notes(figures.curve_evolution("magnitude", students))
    explicit = [profile(epoch, mode="explicit") for epoch in (0, 1)]
    assert several not in notes(figures.curve_evolution("entropy", explicit))
    per_layer = [profile(epoch, mode="layer") for epoch in (0, 1)]
    assert "per layer and epoch" in notes(figures.curve_evolution("entropy", per_layer))


def test_what_was_not_measured_is_said(students):
    nothing = np.full(12, np.nan)
    unknown = {
        "magnitude": nothing,
        "magnitude_images": np.zeros((0, 12)),
        "entropy_images": np.zeros((0, 12)),
        "peak_images": np.zeros((0, 12)),
        "median_images": np.zeros((0, 12)),
    }
    figure = figures.overview([profile(epoch, **unknown) for epoch in (30, 60)])
    assert [text.get_text() for text in figure.axes[1].texts] == ["not measured"]
    assert png(figure)


def test_spectra_of_two_early_two_middle_and_two_late_blocks():
    student = profile(60)
    figure = figures.spectra(student)
    assert [ax.get_title("left") for ax in figure.axes] == ["Early", "Middle", "Late"]
    for ax, rows in zip(figure.axes, [(0, 1), (5, 6), (10, 11)], strict=True):
        assert [t.get_text() for t in ax.get_legend().get_texts()] == [f"Block {row + 1}" for row in rows]
        lines = [line for line in ax.lines if line.get_linestyle() != "None"]
        assert [line.get_linestyle() for line in lines] == ["-", "--"]
        dots = [line for line in ax.lines if line.get_linestyle() == "None"]
        for line, dot, band, row in zip(lines, dots, bands(ax), rows, strict=True):
            spectrum, error = student.spectrum[row], student.spectrum_se[row]
            np.testing.assert_allclose(line.get_xdata(), np.fft.rfftfreq(16)[1:])
            np.testing.assert_array_equal(line.get_ydata(), spectrum[1:9])
            np.testing.assert_array_equal(dot.get_xydata(), [[0, spectrum[0]]])
            edges = band.get_paths()[0].vertices
            at_half = edges[edges[:, 0] == 0.5][:, 1]
            np.testing.assert_allclose(
                [at_half.min(), at_half.max()], [spectrum[8] - error[8], spectrum[8] + error[8]]
            )
        assert ax.get_yscale() == "log"
        assert ax.get_xlim() == (0, 0.5)
    assert "mirror half" in notes(figure)
    assert figure.get_suptitle() == "Channel spectrum, deit_tiny_patch16_224, epoch 60"
    assert figures.spectra(student, title="SoftKD").get_suptitle() == "SoftKD"


def test_spectra_of_ragged_layers_share_the_frequency_axis():
    widths = [64, 256, 513, 1024, 2048]
    figure = figures.spectra(profile(3, RESNET, widths, model="resnet50"))
    assert [ax.get_title("left") for ax in figure.axes] == RESNET
    for ax, width in zip(figure.axes, widths, strict=True):
        line = next(line for line in ax.lines if line.get_linestyle() == "-")
        np.testing.assert_allclose(line.get_xdata(), np.fft.rfftfreq(width)[1:])
    assert len(figures.spectra(profile(0, 1)).axes) == 1
    assert len(figures.spectra(profile(0, 6)).axes) == 3


def test_spectra_with_a_dead_layer_and_with_nothing_but_dead_layers():
    half_dead = profile(0)
    half_dead.spectrum[0] = np.zeros(16)
    half_dead.spectrum_se[0] = np.zeros(16)
    assert png(figures.spectra(half_dead))
    dead = profile(0, spectrum=[np.zeros(16)] * 12)
    with pytest.raises(UserError, match="deit_tiny_patch16_224, epoch 0: no layer has a spectrum"):
        figures.spectra(dead)


def test_heat_map_has_epochs_from_left_to_right_and_block_one_at_the_bottom(students):
    figure = heatmap(students[::-1])
    ax, bar = figure.axes
    (image,) = ax.images
    np.testing.assert_array_equal(image.get_array(), np.stack([s.entropy for s in students]).T)
    assert image.origin == "lower"
    assert tuple(image.get_extent()) == (0.5, 7.5, 0.5, 12.5)
    assert ax.get_ylim() == (0.5, 12.5)
    assert tick_labels(ax.xaxis) == [str(epoch) for epoch in EPOCHS]
    assert list(ax.get_xticks()) == list(range(1, 8))
    assert tick_labels(ax.yaxis) == [str(n) for n in range(1, 13)]
    assert bar.get_ylabel() == "Entropy (bits)"


def test_overview_shows_entropy_magnitude_and_heat_map(students):
    shallow = teacher(12)
    figure = figures.overview(students, shallow, profile(30), title="SoftKD")
    entropy, magnitude, heat = figure.axes[:3]
    for ax, measure in ((entropy, "entropy"), (magnitude, "magnitude")):
        assert len(ax.lines) == len(EPOCHS) + 2
        np.testing.assert_array_equal(ax.lines[0].get_ydata(), getattr(students[0], measure))
        np.testing.assert_array_equal(ax.lines[-1].get_ydata(), getattr(shallow, measure))
        assert ax.lines[-1].get_linestyle() == "-."
    assert heat.images[0].get_array().shape == (12, 7)
    assert figure.get_suptitle() == "SoftKD"
    width, height = figure.get_size_inches()
    assert width > 2 * height


def test_overview_keeps_its_titles_on_one_line_above_the_teachers_axis(students):
    figure = figures.overview(students, teacher())
    png(figure)
    heights = [ax._left_title.get_window_extent().y0 for ax in figure.axes[:3]]
    np.testing.assert_allclose(heights, heights[0], atol=2)


def test_the_readme_s_picture_is_made_of_the_profiles_of_a_run(students, tmp_path):
    for student in students:
        student.save(tmp_path / "run" / "dynamics" / f"student_epoch_{student.epoch:04d}.npz")
    make(tmp_path / "run", tmp_path / "a.png")
    expected = io.BytesIO()
    figures.overview(students).savefig(expected, format="png", dpi=150)
    np.testing.assert_array_equal(plt.imread(tmp_path / "a.png"), plt.imread(io.BytesIO(expected.getvalue())))


ALL = [
    partial(figures.curve_evolution, "entropy"),
    partial(figures.curve_evolution, "magnitude"),
    heatmap,
    figures.overview,
]


@pytest.mark.parametrize("draw", ALL)
def test_no_profiles_is_an_error(draw):
    with pytest.raises(ValueError, match="no Profiles"):
        draw([])


@pytest.mark.parametrize("draw", ALL)
def test_students_of_different_depth_are_an_error_of_one_line_that_names_both(draw, students):
    other = profile(90, 24, model="vit_small_patch16_224")
    with pytest.raises(UserError) as caught:
        draw([*students, other])
    message = str(caught.value)
    assert "\n" not in message
    for part in ("deit_tiny_patch16_224", "12 layers", "vit_small_patch16_224", "24"):
        assert part in message


def test_best_of_another_depth_is_an_error(students):
    with pytest.raises(UserError, match=r"12 layers.* has 24"):
        figures.curve_evolution("entropy", students, None, profile(30, 24))


@pytest.mark.parametrize("epochs", [(0, 30, 30), (0, None), (None, None)])
def test_students_without_an_epoch_of_their_own_are_an_error(epochs):
    with pytest.raises(UserError, match="epoch of its own"):
        heatmap([profile(epoch) for epoch in epochs])


LONG = "vit_small_patch14_reg4_dinov2.lvd142m"
SCENES = {
    "evolution": lambda s: figures.curve_evolution("entropy", s, teacher(), profile(30)),
    "magnitude": lambda s: figures.curve_evolution("magnitude", s, teacher(), profile(30)),
    "alone": lambda s: figures.curve_evolution("entropy", s),
    "single": lambda s: figures.curve_evolution("entropy", s[:1], teacher()),
    "long names": lambda s: figures.curve_evolution(
        "entropy", [profile(300, model=LONG)], profile(None, 24, model=LONG), profile(270, model=LONG)
    ),
    "stages": lambda s: figures.overview([profile(e, RESNET) for e in (0, 5)], teacher(), title="ResNet"),
    "spectra": lambda s: figures.spectra(s[-1]),
    "ragged": lambda s: figures.spectra(profile(3, RESNET, [64, 256, 512, 1024, 2048])),
    "heat map": lambda s: heatmap(s),
    "overview": lambda s: figures.overview(s, teacher(), profile(30), title="SoftKD"),
    "overview of 300 epochs": lambda s: figures.overview([profile(e) for e in range(0, 301, 30)]),
    "overview of one epoch": lambda s: figures.overview(s[:1]),
}


@pytest.mark.parametrize("scene", SCENES)
def test_figures_render_without_clipped_or_overlapping_text(scene, students):
    open_before = plt.get_fignums()
    figure = SCENES[scene](students)
    assert isinstance(figure, Figure)
    assert len(png(figure)) > 5000
    assert plt.get_fignums() == open_before
    assert_legible(figure)


def test_the_callers_style_neither_shows_nor_changes(students):
    with plt.style.context("dark_background"):
        before = dict(mpl.rcParams)
        figure = figures.overview(students, teacher())
        assert dict(mpl.rcParams) == before
    assert figure.get_facecolor() == (1, 1, 1, 1)
    for ax in figure.axes:
        assert lightness(ax.xaxis.label.get_color()) == 0
