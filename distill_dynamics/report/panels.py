"""The panels of the W&B dashboard: what each section shows, and which of it has data."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws

from distill_dynamics.dynamics.statistics import SHOWN, Statistic

TRAINING, PROBES = "epoch", "dynamics/epoch"
"""The two axes: completed epochs in `train/*` and `val/*`, and those at which was probed."""

NOTE = """\
**Curves.** The runs of a group (`wandb.group`; the seeds of one method, say) share one: their mean, with a
band of one standard deviation where the panel has one metric. Runs without a group are averaged as if they
were one: end the grouping above the list of runs to see each by itself.

**Axes.** Completed epochs; 0 is before training. `dynamics/*` are known at the probed ones.

**Caution.** With bins over the values of all layers (`probe.value_range: global`), entropy and magnitude do
not bear witness independently, and curves of different epochs have different bins.
"""


def sections(logged: Collection[str] = ()) -> list[ws.Section]:
    """The sections and panels that have something to show of these metrics and pictures; all without any.

    Panels of blocks and of loss terms choose their metrics by pattern, so that they hold for any depth and
    whatever the terms are called.
    """
    every = [
        _section("Accuracy", TRAINING, _accuracy(), is_open=True),
        _section("Loss terms", TRAINING, _losses()),
        *(_section(curve.title, PROBES, _blocks(curve, logged), curve is SHOWN[0]) for curve in SHOWN),
        _section("Gap to the teacher", PROBES, _lines("dynamics/gap/", *_GAP)),
        _section("Signature of the student", PROBES, _lines("dynamics/student/signature/", *_SIGNATURE)),
        _section("Spectra and large values", PROBES, _spectra()),
        _section("Evolution over epochs", PROBES, _lines("dynamics/evolution/", *_EVOLUTION)),
        _section("Gradient conflict", PROBES, _conflict()),
        _section("Rate and speed", TRAINING, _lines("train/", *_SPEED)),
    ]
    for section in every:
        section.panels = [panel for panel in section.panels if _shows(panel, logged)]
    return [section for section in every if section.panels]


def _shows(panel: Any, logged: Collection[str]) -> bool:
    """Whether a panel has something to show. Takes the metrics without data out of one that has."""
    if not logged or isinstance(panel, wr.MarkdownPanel):
        return True
    if isinstance(panel, wr.MediaBrowser):
        return any(key in logged for key in panel.media_keys)
    if isinstance(panel, wr.BarPlot):  # a comparison
        return all(metric in logged for metric in panel.metrics)
    panel.y = [metric for metric in panel.y if metric in logged]
    return bool(panel.y or (panel.metric_regex and _matching(panel.metric_regex, logged)))


def _matching(pattern: str, logged: Collection[str]) -> list[str]:
    return sorted(name for name in logged if re.search(pattern, name))


def _section(name: str, axis: str, panels: list[Any], is_open: bool = False) -> ws.Section:
    for panel in panels:
        if isinstance(panel, wr.LinePlot):
            panel.x, panel.title_x = axis, "epoch"
    return ws.Section(
        name=name,
        panels=panels,
        is_open=is_open,
        layout_settings=ws.SectionLayoutSettings(columns=3, rows=2),
        panel_settings=ws.SectionPanelSettings(x_axis=axis, smoothing_type="none"),
    )


_AXES: dict[str, dict[str, Any]] = {
    "1 yes, 0 no": {"range_y": (0, 1)},
    "share of the depth": {"range_y": (-1, 1)},
    "cosine; below 0 they conflict": {"range_y": (-1, 1)},
    "squared activation": {"log_y": True},
    "largest over median |A|": {"log_y": True},
}
"""What a unit asks of its axis."""

# Title, unit, and the names of the metrics.
_GAP = (
    ("Entropy: distance of the curves", "bits, RMS", "entropy_distance"),
    ("Entropy: distance of their shapes", "bits, RMS", "entropy_shape_distance"),
    ("Magnitude: distance", "RMS of log2 of the ratio", "magnitude_distance"),
    ("Spectral flatness: distance", "RMS", "flatness_distance"),
    ("Lowest block, student minus teacher", "share of the depth", "nadir_shift"),
)
_SIGNATURE = (
    ("Block of the lowest entropy", "block", "nadir"),
    ("The smaller of fall and rise: depth, where the curve is a U", "bits", "depth"),
    ("Fall before, rise after the lowest block", "bits", "depth_left depth_right"),
    ("Is the curve a U?", "1 yes, 0 no", "u_shaped"),
    ("Block of the lowest magnitude", "block", "magnitude_nadir"),
    ("Is the magnitude a U with it?", "1 yes, 0 no", "magnitude_agrees"),
)
_EVOLUTION = (
    ("Last block: rebound from its lowest entropy", "bits", "last_rebound"),
    ("Last block: entropy since the first probe", "bits", "last_change"),
    ("First block: entropy since the first probe", "bits", "first_change"),
    ("Lowest block since the first probe", "blocks", "nadir_change"),
    ("Last block the lowest until", "epoch", "last_lowest_until"),
    ("Last block rises from", "epoch", "last_rises_from"),
    ("A U since", "epoch", "u_since"),
)
_SPEED = (("Learning rate", "", "lr"), ("Speed", "images a second", "images_per_s"))


def _curve(title: str, unit: str, *metrics: str, **settings: Any) -> wr.LinePlot:
    """Metrics by name; a band for one, as those of several would hide each other."""
    return wr.LinePlot(
        title=title,
        title_y=unit,
        y=list(metrics),
        groupby_aggfunc="mean",
        groupby_rangefunc="stddev" if len(metrics) == 1 else "none",
        **_AXES.get(unit, {}),
        **settings,
    )


def _curves(title: str, unit: str, pattern: str, **settings: Any) -> wr.LinePlot:
    """Every metric that a regular expression matches."""
    return _curve(title, unit, metric_regex=pattern, **settings)


def _lines(prefix: str, *rows: tuple[str, str, str]) -> list[Any]:
    """Panels by title, unit and the names of their metrics behind the prefix."""
    return [_curve(title, unit, *(prefix + name for name in names.split())) for title, unit, names in rows]


def _bars(title: str, unit: str, metrics: list[str]) -> wr.BarPlot:
    """What the summaries of runs say, the mean and the spread of a group."""
    return wr.BarPlot(
        title=title, title_x=unit, metrics=[*metrics], groupby_aggfunc="mean", groupby_rangefunc="stddev"
    )


def _picture(title: str, name: str) -> wr.MediaBrowser:
    return wr.MediaBrowser(title=title, media_keys=[f"dynamics/{name}"])


def _accuracy() -> list[Any]:
    return [
        _curve("Student: top-1", "%", "val/acc1"),
        _bars("Top-1: student at its latest epoch, and teacher", "%", ["val/acc1", "teacher/acc1"]),
        _curve("Student: kNN top-1 of its features", "%", "val/knn1"),
        _bars("kNN top-1: student at its latest epoch, and teacher", "%", ["val/knn1", "teacher/knn1"]),
        _curve("Student: linear top-1 of its features", "%", "val/linear1"),
        _curve("Student: effective rank of its features", "directions", "val/effective_rank"),
        _curve("Student: kNN top-1 of its averaged weights (callback EMA)", "%", "val/knn1_ema"),
        _curve("Student: top-1 of its averaged weights (callback EMA)", "%", "val/acc1_ema"),
        _curve("Student: top-5", "%", "val/acc5"),
        _curve("Student: cross-entropy in validation", "nats", "val/loss"),
        wr.MarkdownPanel(markdown=NOTE),
    ]


def _losses() -> list[Any]:
    return [
        _curve("Loss: the weighted total", "", "train/loss"),
        _curve("Cross-entropy, smoothed labels, unweighted", "nats", "train/loss_ce"),
        _curve("SoftKD, unweighted", "nats", "train/loss_kd"),
        _curves("All terms, unweighted", "", "^train/loss_", log_y=True),
        _curves("Weights of terms that change", "β", "^train/weight_"),
    ]


def _blocks(curve: Statistic, logged: Collection[str]) -> list[Any]:
    name, title, unit = curve.name, curve.title, curve.unit or curve.axis
    if curve.kind == "halves":  # of the teacher, once: bars, which take their metrics by name alone
        picture = _picture("What the student cannot hold of its teacher's blocks", "floors_by_block")
        blocks = _matching(f"^dynamics/teacher/{name}/block_", logged)
        bars = f"{title} of each block of the teacher"
        return [picture, *([_bars(bars, unit, blocks)] if blocks else [])]
    heatmap = [_picture("Entropy by block and epoch", "entropy_heatmap")] if name == "entropy" else []
    if curve.kind == "pair":
        heatmap = [_picture(f"{title}, each pair of blocks", f"{name}_heatmap")]
    return [
        _picture(f"{title} by block, a line an epoch, beside the teacher", f"{name}_evolution"),
        *heatmap,
        _curves(f"{title} of each block of the student", unit, f"^dynamics/student/{name}/block_"),
        _curve(f"{title} of the student's first block", unit, f"dynamics/student/{name}/block_01"),
    ]


def _spectra() -> list[Any]:
    return [
        _picture("Channel spectra of the student", "student_spectra"),
        _picture("Channel spectra of the teacher", "teacher_spectra"),
        *_lines(
            "dynamics/student/signature/",
            ("Spectral flatness", "1 is uniform", "flatness_early flatness_middle flatness_late"),
            ("Power in the lowest third of frequencies", "share", "low_early low_middle low_late"),
            ("Power in the highest third of frequencies", "share", "high_early high_middle high_late"),
            ("Power", "squared activation", "energy_early energy_middle energy_late"),
            ("Does the spectrum have three phases?", "1 yes, 0 no", "three_phases"),
            ("Massive activations", "largest over median |A|", "massive_ratio"),
            ("Block of the massive activations", "block", "massive_block"),
        ),
    ]


def _conflict() -> list[Any]:
    unit, metrics = "cosine; below 0 they conflict", "^dynamics/conflict/"
    return [
        _curves("Feature term and rest of the loss, each block (callback GradientConflict)", unit, metrics),
        _curves("The same of the first block", unit, f"{metrics}.+/block_01$"),
    ]
