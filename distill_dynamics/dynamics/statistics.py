"""The list of what is measured by block. Another statistic is a function in `measures/` and a line here.

It is then a curve of every Profile, a metric a block, a figure, a section of the dashboard and a table of the
report. What is on the list is read without torch; the functions are loaded where they are called.
Letters: B images, C channels, H W grid, L layers, N images in all.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal


@dataclass(frozen=True)
class Statistic:
    """A curve by block: its function, and how it is called where it is shown."""

    name: str
    """Key of `Profile.curves` (of `Profile.pairs`), part of metric names and file names."""
    kind: Literal["images", "set", "halves", "pair"]
    """Of what it is. "images": of each image, x [B, C, H, W] → [B]; the curve is [N, L]. "set": of all
    images at once, eigenvalues [..., C] of the covariance of their tokens → [...]; the curve is [L], and has
    a jackknife error unless it is `whole`. "halves": of two halves of the images, covariances [C, C] of the
    tokens of each, and the student's channels → scalar; the curve is [L], where a Profile has such a width.
    "pair": of a layer of each of two models, scatter matrices [C, C], [C, D], [D, D] of their tokens →
    scalar; [L, M] over the teacher's M layers, the curve that of layers at equal depth."""
    function: str
    """Module in `measures/` and function, "magnitude.image_magnitudes"."""
    column: int | None = None
    """Which one it is of those [B, ...] that the function gives; None for a function of one."""
    binned: bool = False
    """Whether values are counted in bins: the function then takes their range and number, too."""
    whole: bool = False
    """Whether it is a whole number: a jackknife says nothing of the error of one (Shao & Wu, 1989)."""
    title: str = ""
    """What it is called in headings: "Entropy"; "" where it is kept and not shown."""
    heading: str = ""
    """The title of its axes, where it has a longer name there."""
    axis: str = ""
    """Label of its axis: "Entropy (bits)"."""
    unit: str = ""
    """Behind a value: "bits"."""
    about: str = ""
    """What it is, for a caption: "Channel entropy (Eq. 5)"."""
    wide: bool = False
    """Whether its axis is logarithmic where values span more than a factor of 30."""

    @property
    def within_text(self) -> str:
        """The title within a sentence: "entropy", but "CKA"."""
        return self.title if self.title[:2].isupper() else self.title[:1].lower() + self.title[1:]

    def load(self) -> Callable[..., Any]:
        """The function."""
        module, name = self.function.rsplit(".", 1)
        return getattr(import_module(f"distill_dynamics.dynamics.measures.{module}"), name)


STATISTICS = (
    Statistic(
        "entropy",
        "images",
        "entropy.image_entropies",
        binned=True,
        title="Entropy",
        axis="Entropy (bits)",
        unit="bits",
        about="Channel entropy (Eq. 5)",
    ),
    Statistic(
        "magnitude",
        "images",
        "magnitude.image_magnitudes",
        column=0,
        title="Magnitude",
        heading="Activation magnitude",
        axis="Mean |A|",
        about="Mean activation magnitude (Eq. 6)",
        wide=True,
    ),
    Statistic("median", "images", "magnitude.image_magnitudes", column=1),
    Statistic("peak", "images", "magnitude.image_magnitudes", column=2),
    Statistic("peak_channel", "images", "magnitude.image_magnitudes", column=3),
    Statistic(
        "effective_rank",
        "set",
        "effective_rank.effective_rank",
        title="Effective rank",
        axis="Effective rank",
        about="Effective rank of the tokens' covariance (Roy & Vetterli, 2007)",
    ),
    Statistic(
        "rank_95",
        "set",
        "rank_95.rank_95",
        whole=True,
        title="Rank at 95 % energy",
        axis="Principal components",
        about="Principal components that hold 95 % of the tokens' variance",
    ),
    Statistic(
        "capacity_floor",
        "halves",
        "capacity_floor.capacity_floor",
        title="Capacity floor",
        axis="Share of token variance",
        about="Capacity floor: the share of the tokens' variance that no linear map from the student's "
        "channels reaches (Eckart & Young, 1936), by components of one half of the images on the other half",
    ),
    Statistic(
        "correlation_floor",
        "halves",
        "correlation_floor.correlation_floor",
        title="Correlation floor",
        axis="Share of token variance",
        about="Correlation floor: the capacity floor of standardised channels",
    ),
    Statistic(
        "cka",
        "pair",
        "cka.linear_cka",
        title="CKA with the teacher",
        axis="Linear CKA",
        about="Linear CKA (Kornblith et al., 2019) of each block's tokens with the teacher's at equal depth",
    ),
)

SHOWN = tuple(statistic for statistic in STATISTICS if statistic.title)
"""Those that are logged, drawn and told of."""


def statistic(name: str) -> Statistic:
    """The one of that name. Raises KeyError."""
    return {one.name: one for one in STATISTICS}[name]
