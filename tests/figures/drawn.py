import io
import warnings
from itertools import combinations

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgb
from profiles import profile_of

EPOCHS = (0, 2, 4, 8, 16, 30, 60)
RESNET = ["act1", "layer1", "layer2", "layer3", "layer4"]


def profile(
    epoch, layers=12, channels=None, model="deit_tiny_patch16_224", mode="global", images=8, **changed
):
    names = [f"blocks.{i}" for i in range(layers)] if isinstance(layers, int) else layers
    depth = len(names)
    rng = np.random.default_rng((epoch or 0, depth))
    bend = np.linspace(-1, 1, depth) ** 2
    entropy = 4.3 + 0.2 * bend + rng.normal(0, 0.05, (images, depth))
    magnitude = (0.5 + 0.3 * bend) * rng.uniform(0.9, 1.1, (images, depth))
    spectrum = [rng.uniform(0.02, 0.2, c) for c in channels or [16] * depth]
    fields = {
        "entropy": entropy.mean(0),
        "magnitude": magnitude.mean(0),
        "spectrum": spectrum,
        "entropy_images": entropy,
        "magnitude_images": magnitude,
        "spectrum_se": [s * 0.1 for s in spectrum],
        "peak_images": magnitude * 5,
        "median_images": magnitude * 0.8,
        "peak_channel": np.zeros(depth, int),
    }
    return profile_of(
        model=model,
        epoch=epoch,
        layers=names,
        value_range=np.tile([-5.0, 5.0], (depth, 1)),
        range_mode=mode,
        clipped=np.zeros(depth),
        bins=100,
        **(fields | changed),
    )


def teacher(layers=24, **changed):
    return profile(None, layers, model="cait_s24_224.fb_dist_in1k", **changed)


def png(figure):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # "constrained_layout not applied", a missing glyph
        FigureCanvasAgg(figure)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
    return buffer.getvalue()


def tick_labels(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


def legend_labels(figure):
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def notes(figure):
    return " ".join(" ".join(text.get_text() for text in figure.texts).split())


def bands(ax):
    return [c for c in ax.collections if isinstance(c, PolyCollection)]


def lightness(color):
    return float(np.dot(to_rgb(color), (0.2126, 0.7152, 0.0722)))


def assert_legible(figure):
    """No text is cut off or lies on another; call after `png`, which lays the figure out."""
    boxes = {}
    for ax in [*figure.axes, *(top for panel in figure.axes for top in panel.child_axes)]:
        texts = [ax.xaxis.label, ax.yaxis.label, ax._left_title]
        texts += [] if ax.get_legend() is None else ax.get_legend().get_texts()
        for i, axis in enumerate((ax.xaxis, ax.yaxis)):
            low, high = sorted(axis.get_view_interval())
            labels = [label for label in axis.get_ticklabels() if label.get_visible()]
            texts += [label for label in labels if low <= label.get_position()[i] <= high]
        boxes |= {(id(text), text.get_text()): text.get_window_extent() for text in texts if text.get_text()}
    texts = [*figure.texts, *(text for legend in figure.legends for text in legend.get_texts())]
    boxes |= {(id(text), text.get_text()): text.get_window_extent() for text in texts if text.get_text()}

    assert len(boxes) > 10
    for (_, name), box in boxes.items():
        assert box.x0 >= 0, name
        assert box.y0 >= 0, name
        assert box.x1 <= figure.bbox.x1, name
        assert box.y1 <= figure.bbox.y1, name
    for (one, a), (two, b) in combinations(boxes.items(), 2):
        assert not a.overlaps(b), (one[1], two[1])
