from functools import partial
from itertools import combinations

import matplotlib.pyplot as plt
import numpy as np
import pytest
from drawn import RESNET, assert_legible, bands, legend_labels, notes, png, profile, teacher, tick_labels
from matplotlib.colors import to_hex, to_rgb
from scipy import stats

from distill_dynamics import figures
from distill_dynamics.errors import UserError
from distill_dynamics.figures.style import run_styles
from distill_dynamics.report.svg import draw
from distill_dynamics.runs.profiles import RunProfiles

# Okabe and Ito, Color Universal Design (2008), and black.
SAFE = {"#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7", "#000000"}


def published(epoch, layers=12):
    """No images, no magnitude, no spectrum."""
    nothing = np.zeros((0, layers))
    return profile(
        epoch,
        layers,
        entropy_images=nothing,
        magnitude_images=nothing,
        peak_images=nothing,
        median_images=nothing,
        magnitude=np.full(layers, np.nan),
        spectrum=[np.empty(0)] * layers,
        spectrum_se=[np.empty(0)] * layers,
    )


def run(epochs=(0, 5, 10), layers=12, taught=True, seed=0, **changed):
    """A training whose curves are its own: those of `profile`, moved."""
    students = [profile(epoch, layers, **changed) for epoch in epochs]
    best = profile(epochs[-1], layers, **changed)
    for made in [*students, best]:
        made.means["entropy"] += 0.01 * seed
    return RunProfiles(students, teacher(layers) if taught else None, best)


@pytest.fixture
def runs():
    return {"softkd": run(), "spectralkd-last": run(seed=1), "projectorkd-last": run(seed=2)}


def heatmap(runs):
    return figures.entropy_heatmap({name: run.students for name, run in runs.items()})


BY_BLOCK = [
    (partial(figures.curve_by_block, "entropy"), "entropy"),
    (partial(figures.curve_by_block, "magnitude"), "magnitude"),
]


@pytest.mark.parametrize(("draw", "measure"), BY_BLOCK)
def test_by_block_draws_one_safe_line_a_model_with_its_standard_error(draw, measure):
    models = {f"model {number}": profile(number) for number in range(7)}
    figure = draw(models)
    (ax,) = figure.axes
    for line, band, model in zip(ax.lines, bands(ax), models.values(), strict=True):
        np.testing.assert_array_equal(line.get_xdata(), np.arange(1, 13))
        np.testing.assert_array_equal(line.get_ydata(), getattr(model, measure))
        edges = band.get_paths()[0].vertices
        low, high = np.sort(edges[edges[:, 0] == 7][:, 1])[[0, -1]]
        error = stats.sem(getattr(model, f"{measure}_images"), axis=0)[6]
        np.testing.assert_allclose([low, high], getattr(model, measure)[6] + [-error, error])
    assert {to_hex(line.get_color()) for line in ax.lines} <= SAFE
    looks = {(to_hex(line.get_color()), str(line._dash_pattern), line.get_marker()) for line in ax.lines}
    assert len(looks) == 7
    # Without colour they are told apart, too: printed in black and white.
    assert len({look[1:] for look in looks}) == 7
    assert legend_labels(figure) == list(models)


# Machado, Oliveira and Fernandes (2009): linear RGB as seen without one kind of cone.
BLIND = {
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
}


def least_distance(colours, seen):
    """Smallest CIE 1976 difference of two of the colours: 2 can just be told apart, side by side."""
    rgb = np.array([to_rgb(colour) for colour in colours])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
    xyz = np.clip(linear @ np.array(seen).T, 0, 1) @ np.array(to_xyz).T / [0.95047, 1, 1.08883]
    x, y, z = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116).T
    lab = np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)
    return min(np.linalg.norm(a - b) for a, b in combinations(lab, 2))


@pytest.mark.parametrize("kind", BLIND)
def test_the_colours_of_runs_are_told_apart_by_the_colour_blind(kind):
    looks = run_styles([f"run {number}" for number in range(6)])
    colours = [look["color"] for look in looks.values()]
    assert len(set(colours)) == 6
    assert least_distance(colours, BLIND[kind]) > 15
    assert least_distance(plt.rcParamsDefault["axes.prop_cycle"].by_key()["color"][:6], BLIND[kind]) < 15


def test_seeds_of_one_method_share_a_colour_and_differ_in_their_dashes():
    names = ["soft 0", "last 0", "soft 1", "last 1", "soft 2", "other"]
    methods = {name: name.split()[0] for name in names[:5]}
    rows = {name: [{"epoch": n, "val/acc1": 50.0} for n in (1.0, 2.0)] for name in names}
    trained = {name: run() for name in names}
    looks = run_styles(names, methods)
    for figure in (
        figures.curve_by_block("entropy", {name: profile(n) for n, name in enumerate(names)}, styles=looks),
        figures.entropy_by_range({"global": {name: profile(0) for name in names}}, looks),
        figures.training_curves(rows, looks),
        figures.signature_by_epoch(trained, looks),
    ):
        looks = {}
        for name, line in zip(names, figure.axes[0].lines, strict=False):
            looks.setdefault(name.split()[0], []).append((to_hex(line.get_color()), str(line._dash_pattern)))
        colours = {method: {colour for colour, _ in found} for method, found in looks.items()}
        assert all(len(found) == 1 for found in colours.values())
        assert len(set.union(*colours.values())) == 3
        assert [len(set(found)) for found in looks.values()] == [3, 2, 1]


@pytest.mark.parametrize(("draw", "measure"), BY_BLOCK)
def test_by_block_has_relative_depth_where_depths_differ(draw, measure):
    shallow, deep = profile(0, 4), teacher(24)
    (ax,) = draw({"student": shallow}, [deep]).axes
    np.testing.assert_allclose(ax.lines[0].get_xdata(), [0, 1 / 3, 2 / 3, 1])
    np.testing.assert_allclose(ax.lines[1].get_xdata(), np.arange(24) / 23)
    np.testing.assert_array_equal(ax.lines[1].get_ydata(), getattr(deep, measure))
    assert ax.lines[1].get_linestyle() == "-."
    assert "Relative depth" in ax.get_xlabel()
    (same,) = draw({"student": shallow}, [teacher(4)]).axes
    assert same.get_xlabel() == "Block"
    assert tick_labels(same.xaxis) == list("1234")


def test_by_method_is_a_panel_a_run_on_one_scale_with_the_teacher_beside_them(runs):
    figure = figures.curve_by_method("entropy", runs)
    *panels, beside = figure.axes[:4]
    colours = set()
    for ax, (name, one) in zip(panels, runs.items(), strict=True):
        assert ax.get_title("left") == name
        *students, best = ax.lines
        for line, student in zip(students, one.students, strict=True):
            np.testing.assert_array_equal(line.get_ydata(), student.entropy)
            assert line.get_linestyle() == "-"
        np.testing.assert_array_equal(best.get_ydata(), one.best.entropy)
        assert best.get_linestyle() == "--"
        assert ax.get_ylim() == beside.get_ylim()
        colours.add(tuple(to_hex(line.get_color()) for line in students))
    assert len(colours) == 1  # an epoch has one colour in all panels
    (line,) = beside.lines
    np.testing.assert_array_equal(line.get_ydata(), teacher(12).entropy)
    assert line.get_linestyle() == "-."
    assert beside.get_title("left").split()[0] == "Teacher"
    assert tick_labels(figure.axes[4].yaxis) == ["0", "5", "10"]
    assert legend_labels(figure) == ["Best checkpoint", "Teacher"]
    assert "different bins" in notes(figure)


def test_by_method_gives_each_different_teacher_a_panel_and_epochs_their_place_among_all(runs):
    runs["other"] = RunProfiles([profile(2), profile(5)], teacher(24), None)
    figure = figures.curve_by_method("entropy", runs)
    titles = [ax.get_title("left") for ax in figure.axes]
    assert len([title for title in titles if title.startswith("Teacher")]) == 2
    bar = figure.axes[-1]
    assert tick_labels(bar.yaxis) == ["0", "2", "5", "10"]
    one, other = figure.axes[0].lines[1], figure.axes[3].lines[1]  # both of epoch 5
    assert to_hex(one.get_color()) == to_hex(other.get_color())


def test_seeds_of_a_method_share_a_panel_their_mean_thick_each_of_them_thin():
    seeds = {f"soft {seed}": run((0, 5), seed=seed) for seed in range(3)}
    seeds["soft 2"].students.append(profile(9))  # probed of this one alone
    figure = figures.curve_by_method(
        "entropy", {**seeds, "last": run((0, 5))}, dict.fromkeys(seeds, "SoftKD, 3 runs")
    )
    shared, alone, beside, _ = figure.axes
    titles = [ax.get_title("left").replace("\n", " ") for ax in figure.axes[:3]]
    assert titles == ["SoftKD, 3 runs", "last", f"Teacher ({teacher().model})"]
    assert not bands(shared)
    assert bands(alone)
    thick = [line for line in shared.lines if line.get_linewidth() > 1]
    thin = [line for line in shared.lines if line.get_linewidth() < 1]
    assert {line.meta.run for line in thin} == set(seeds)
    assert [line.meta.run for line in thick] == ["SoftKD, 3 runs"] * 3
    assert [line.meta.epoch for line in thin if line.meta.run == "soft 2"] == [0, 5, 9, 5]
    assert [(line.meta.epoch, line.meta.role) for line in thick] == [
        (0, "student"), (5, "student"), (5, "best"),
    ]  # fmt: skip
    curves = np.stack([[student.entropy for student in one.students[:2]] for one in seeds.values()])
    for line, mean in zip(thick, curves.mean(axis=0), strict=False):
        np.testing.assert_allclose(line.get_ydata(), mean)
    assert to_hex(thick[0].get_color()) == to_hex(thin[0].get_color()) == to_hex(alone.lines[0].get_color())
    assert thick[2].get_linestyle() == "--"
    assert "their mean is thick" in notes(figure)
    assert "thick" not in notes(figures.curve_by_method("entropy", seeds))
    assert len(beside.lines) == 1
    # What differs in depth has no mean.
    deep = figures.curve_by_method("entropy", {"a": run(), "b": run(layers=24)}, {"a": "one", "b": "one"})
    assert [ax.get_title("left") for ax in deep.axes[:2]] == ["one", "one"]


def test_bands_are_bootstrap_intervals_where_they_were_asked_for(runs):
    one = runs["softkd"]
    rng = np.random.default_rng(0)
    for figure in (
        figures.curve_by_block("entropy", {"a": one.best}, bootstrap=True),
        figures.entropy_by_range({"global": {"a": one.best}}, bootstrap=True),
        figures.curve_evolution("entropy", [one.best], bootstrap=True),
        figures.curve_by_method("entropy", {"a": RunProfiles([one.best], None, None)}, bootstrap=True),
    ):
        (band,) = bands(figure.axes[0])
        edges = band.get_paths()[0].vertices
        low, high = np.sort(edges[edges[:, 0] == 7][:, 1])[[0, -1]]
        found = stats.bootstrap(
            (one.best.entropy_images[:, 6],), np.mean, method="percentile", n_resamples=20_000, rng=rng
        )
        np.testing.assert_allclose([low, high], found.confidence_interval, atol=0.005)
        assert "95 % bootstrap intervals over images" in notes(figure)
        assert "standard error" not in notes(figure)
        # The same, for who reads it off.
        low, high = (f"{end:.5g}" for end in (low, high))
        texts = [point[3] for point in draw(figure, "f").curves[0]["points"]]
        assert texts[6].endswith(f" ({low} to {high})")


def test_by_method_of_published_curves_has_no_bands_and_no_figure_of_what_was_not_measured():
    curves = {"a": RunProfiles([published(30), published(60)], None, published(None))}
    figure = figures.curve_by_method("entropy", curves)
    np.testing.assert_array_equal(figure.axes[0].lines[0].get_ydata(), curves["a"].students[0].entropy)
    assert not bands(figure.axes[0])
    assert "standard error" not in notes(figure)
    with pytest.raises(ValueError, match="no Profiles to draw"):
        figures.curve_by_method("magnitude", curves)


def test_heat_maps_share_one_colour_scale(runs):
    figure = heatmap(runs)
    everything = [student.entropy for one in runs.values() for student in one.students]
    for ax, (name, one) in zip(figure.axes[:3], runs.items(), strict=True):
        (image,) = ax.images
        assert ax.get_title("left") == name
        np.testing.assert_array_equal(image.get_array(), np.stack([s.entropy for s in one.students]).T)
        assert image.get_clim() == (np.min(everything), np.max(everything))
    assert figure.axes[3].get_ylabel() == "Entropy (bits)"


def test_a_layer_without_a_number_is_a_hole_and_not_the_lowest_block():
    holes = profile(5)
    holes.means["entropy"][4] = np.nan
    trained = {"a": RunProfiles([profile(0), holes], None, None)}
    lowest, depth, _ = figures.signature_by_epoch(trained).axes
    for ax in (lowest, depth):
        assert np.isfinite(ax.lines[0].get_ydata()).tolist() == [True, False]
    (image,) = heatmap(trained).axes[0].images
    assert image.get_clim() == (np.nanmin(image.get_array()), np.nanmax(image.get_array()))
    assert np.isfinite(image.get_clim()).all()


def test_signature_by_epoch_shows_lowest_block_depth_last_block_and_distance(runs):
    figure = figures.signature_by_epoch(runs)
    lowest, depth, last, distance = figure.axes
    for number, one in enumerate(runs.values()):
        curves = np.stack([student.entropy for student in one.students])
        np.testing.assert_array_equal(lowest.lines[number].get_xydata()[:, 0], [0, 5, 10])
        np.testing.assert_array_equal(lowest.lines[number].get_ydata(), curves.argmin(axis=1) + 1)
        sides = np.minimum(curves[:, 0], curves[:, -1]) - curves.min(axis=1)
        np.testing.assert_allclose(depth.lines[number].get_ydata(), sides)
        np.testing.assert_array_equal(last.lines[number].get_ydata(), curves[:, -1])
        rms = np.sqrt(((curves - one.teacher.entropy) ** 2).mean(axis=1))
        np.testing.assert_allclose(distance.lines[number].get_ydata(), rms)
    assert len(bands(depth)) == 3
    assert not bands(distance)
    assert legend_labels(figure) == list(runs)


def test_signature_by_epoch_has_no_distance_without_a_teacher_nor_bands_without_images():
    curves = {"a": RunProfiles([published(30), published(60)], None, None)}
    figure = figures.signature_by_epoch(curves)
    assert [ax.get_title("left") for ax in figure.axes] == [
        "Lowest block",
        "Smaller of fall and rise",
        "Entropy of the last block",
    ]
    assert not any(bands(ax) for ax in figure.axes)
    curve = curves["a"].students[1].entropy
    assert figure.axes[1].lines[0].get_ydata()[1] == min(curve[0], curve[-1]) - curve.min()


def test_only_what_is_a_u_has_a_filled_marker_and_what_is_unknown_is_no_figure():
    bend = np.linspace(-1, 1, 12) ** 2
    wobble = np.random.default_rng(0).normal(0, 0.001, (8, 12))
    u, line = (
        profile(epoch, entropy_images=curve + wobble, entropy=(curve + wobble).mean(0))
        for epoch, curve in ((1, bend), (2, np.linspace(4, 3, 12)))
    )
    drawn, opened = figures.signature_by_epoch({"a": RunProfiles([u, line], None, None)}).axes[1].lines
    assert drawn.get_xdata().tolist() == [1, 2]
    assert opened.get_xdata().tolist() == [2]
    assert to_hex(opened.get_markerfacecolor()) == "#ffffff"
    assert opened in drawn.companions  # and goes with its line
    unknown = profile(1, entropy=np.full(12, np.nan), entropy_images=np.full((8, 12), np.nan))
    with pytest.raises(ValueError, match="no Profiles to draw"):
        figures.signature_by_epoch({"a": RunProfiles([unknown], None, None)})
    assert png(heatmap({"a": RunProfiles([unknown], None, None)}))


def test_ranges_stand_side_by_side_with_the_magnitude():
    ranges = {
        "global": {"deit": profile(0), "cait": profile(1)},
        "layer": {"deit": profile(2, mode="layer"), "cait": profile(3, mode="layer")},
    }
    figure = figures.entropy_by_range(ranges)
    one, two, magnitude = figure.axes
    assert "one range for all layers" in one.get_title("left").replace("\n", " ")
    assert "each layer's own range" in two.get_title("left").replace("\n", " ")
    for ax, profiles in ((one, ranges["global"]), (two, ranges["layer"])):
        for line, model in zip(ax.lines, profiles.values(), strict=True):
            np.testing.assert_array_equal(line.get_ydata(), model.entropy)
    np.testing.assert_array_equal(magnitude.lines[0].get_ydata(), ranges["layer"]["deit"].magnitude)
    assert one.lines[0].get_color() == two.lines[0].get_color() == magnitude.lines[0].get_color()
    assert legend_labels(figure) == ["deit", "cait"]


NOTHING = RunProfiles([], None, None)


@pytest.mark.parametrize(
    "draw",
    [
        lambda: figures.curve_by_block("entropy", {}),
        lambda: figures.entropy_by_range({}),
        lambda: figures.curve_by_method("entropy", {"a": NOTHING}),
        lambda: heatmap({"a": NOTHING}),
        lambda: figures.signature_by_epoch({"a": NOTHING}),
    ],
)
def test_nothing_to_draw_is_an_error(draw):
    with pytest.raises(ValueError, match="no Profiles to draw"):
        draw()


def test_a_run_whose_students_differ_in_depth_is_an_error():
    with pytest.raises(UserError, match="different depth"):
        figures.curve_by_method("entropy", {"a": RunProfiles([profile(0), profile(1, 24)], None, None)})


LONG = "spectralkd-first-and-last-six-layers-beta-0.2-seed-1"
TEN = {f"run-{number}": run(range(0, 301, 30), seed=number) for number in range(10)}
ROWS = [{"epoch": float(n), "train/loss_ce": 2.0 / n, "val/acc1": 50.0 + n} for n in range(1, 100)]
SCENES = {
    "by block": lambda r: figures.curve_by_block(
        "entropy", {n: one.best for n, one in r.items()}, [teacher(12)]
    ),
    "long names": lambda r: figures.curve_by_block(
        "entropy", {LONG: profile(0), LONG + "2": profile(1)}, [teacher()]
    ),
    "ten": lambda r: figures.curve_by_block("magnitude", {name: one.best for name, one in TEN.items()}),
    "by method": lambda r: figures.curve_by_method("entropy", r),
    "ten by method": lambda r: figures.curve_by_method("entropy", TEN),
    "one by method": lambda r: figures.curve_by_method("magnitude", {LONG: run(layers=24)}),
    "stages": lambda r: figures.curve_by_method(
        "entropy", {"a": run(layers=RESNET), "b": run(layers=RESNET)}
    ),
    "heat maps": lambda r: heatmap(r),
    "ten heat maps": lambda r: heatmap(TEN),
    "signature": lambda r: figures.signature_by_epoch(r),
    "training": lambda r: figures.training_curves({LONG: ROWS, "a": ROWS[:5]}),
    "ranges": lambda r: figures.entropy_by_range({"global": {"a": profile(0)}, "-4,4": {"a": profile(1)}}),
}


@pytest.mark.parametrize("scene", SCENES)
def test_figures_render_without_clipped_or_overlapping_text(scene, runs):
    figure = SCENES[scene](runs)
    assert len(png(figure)) > 5000
    assert_legible(figure)
