"""What says how good a student is: its accuracy or, where there are no classes, that of its features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from distill_dynamics.text import number


class Score(NamedTuple):
    """Something that is measured on the validation images: `val/<name>`, `teacher/<name>`."""

    name: str
    title: str
    unit: str
    """Of its numbers: "%", or "" for a number of directions."""

    @property
    def metric(self) -> str:
        """Its name for a student."""
        return f"val/{self.name}"

    @property
    def column(self) -> str:
        """The head of a column: "kNN top-1 (%)"."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    def text(self, value: float) -> str:
        """A value, without its unit; a dash for NaN."""
        return number(value, 2 if self.unit else 1)


OF_CLASSES = (Score("acc1", "top-1", "%"), Score("acc5", "top-5", "%"))
OF_FEATURES = (
    Score("knn1", "kNN top-1", "%"),
    Score("linear1", "linear top-1", "%"),
    Score("effective_rank", "effective rank", ""),
)
"""The first of each is what the best student is chosen by."""


def scores_of(rows: Sequence[Mapping[str, float]]) -> Sequence[Score]:
    """Which of the two the rows of a run's metrics.csv have."""
    named = {name for row in rows for name in row}
    of_features = {"val/knn1", "teacher/knn1"} & named and not {"val/acc1", "teacher/acc1"} & named
    return OF_FEATURES if of_features else OF_CLASSES
