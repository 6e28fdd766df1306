"""What the captions of a report's figures say."""

from collections.abc import Iterable, Mapping, Sequence

from distill_dynamics.dynamics.statistics import Statistic
from distill_dynamics.runs.scores import OF_CLASSES, OF_FEATURES, scores_of

LINES = "One line a probed epoch, from green to violet; dashed orange the best checkpoint"
SPECTRUM = (
    "Mean magnitude of the Fourier transform along the channels (Eq. 2) of early, middle and late blocks: "
    "the paper's Figure 3."
)
RANGES = (
    "With one range for all layers (the paper's) a layer's entropy holds log2 of its scale, so that it "
    "follows the magnitude; with each layer's own range it holds only how the values are spread within that "
    "range, and where layers are divided by their magnitude first (scaled) only how they are spread about "
    "it: a shape that stands in the first alone is one of scale."
)
FLOORS = (
    "What a narrower student cannot hold",
    "The share of the tokens' variance of each block that no linear map from the student's channels reaches: "
    "components of one half of the images, measured on the other half. Dashed: of standardised channels.",
)
_PAPER = {
    ("entropy", "by_block"): ": the paper's Figure 1",
    ("magnitude", "by_block"): ": the paper's Figure 2",
    ("entropy", "by_method"): ": the paper's Figure 4",
}


def about(curve: Statistic, figure: str) -> str:
    """What a statistic is, and which figure of the paper a figure of it is."""
    return curve.about + _PAPER.get((curve.name, figure), "")


def pair_caption(curve: Statistic) -> tuple[str, str]:
    """Title and caption of a heat map."""
    title = f"{curve.title}, each pair of blocks"
    return title, "Every block of the student beside every block of the teacher."


def of_training(runs: Iterable[Sequence[Mapping[str, float]]], floors: bool) -> str:
    """Of the training's curves; `runs` are the rows of metrics.csv, `floors` are drawn or not."""
    of = {scores_of(rows) for rows in runs if any(name.startswith("val/") for row in rows for name in row)}
    dashed = ", dashed what no linear map from the student can go below" if floors else ""
    top1 = f"{dashed and ','} and top-1 on the validation set beside the teacher's"
    features = " Of pooled features kNN and linear top-1 and effective rank, beside the teacher's."
    return f"Each loss term{dashed}{top1 * (OF_CLASSES in of)}.{features * (OF_FEATURES in of)}"
