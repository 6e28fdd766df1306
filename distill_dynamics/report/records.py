"""What a report is about, as data: one training, one analysed model, or one published curve."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from distill_dynamics.dynamics.profile import Profile
from distill_dynamics.runs.directory import succeeded
from distill_dynamics.runs.profiles import RunProfiles
from distill_dynamics.text import listed

ANALYSIS_SCHEMA = 1
"""Version of `analysis.json`, which `analyze` writes."""

_MOST_BLOCKS = 10_000


@dataclass(frozen=True)
class Run:
    """One training, one analysed model, or one published curve, as far as it could be read."""

    name: str
    """Unique among the runs that were loaded together."""
    label: str
    """What its curves are called: a model has one label in all ranges of an analysis."""
    path: Path
    """The run directory, the folder of `analyze`, or the CSV file."""
    kind: Literal["fit", "analysis", "published"]
    profiles: RunProfiles
    """Of a training; without students and best where `models` holds something."""
    metrics: list[dict[str, float]] = field(default_factory=list, repr=False)
    """Rows of metrics.csv without their empty cells."""
    config: dict[str, Any] = field(default_factory=dict, repr=False)
    """config.yaml; {} where there is none."""
    starts: list[dict[str, Any]] = field(default_factory=list, repr=False)
    """One record a start of the run; of an analysis the one of its command."""
    warnings: list[str] = field(default_factory=list)
    """What a reader must know first, in sentences."""
    range: str = ""
    """Range of the entropy bins: "global", "layer", "scaled" or numbers "0,1"; "" where none was probed."""
    models: list[Profile] = field(default_factory=list, repr=False)
    """Analysed models that are no training."""
    widths: list[Profile] = field(default_factory=list, repr=False)
    """An analysed model again, with its floors at further widths of a student."""
    quality: dict[str, dict[str, float]] = field(default_factory=dict, repr=False)
    """Of an analysed model how good its features are: "" → knn1, linear1 (percent) and effective_rank; of an
    evolution by "epoch 3", "best"."""
    images: str = field(default="", repr=False)
    """Which images an analysis saw, equal for equal files whatever their size and crop; "" where unknown."""

    def named(self) -> list[tuple[str, Profile]]:
        """What a table calls each Profile: by role in a training, else by the run's name."""
        return [*self.profiles.named(), *((self.name, model) for model in self.models)]

    def floors(self) -> list[tuple[str, Profile]]:
        """The Profiles that may have floors, by what their model is called; of an evolution the latest."""
        teacher, latest = self.profiles.teacher, self.latest
        models = [latest, *(profile for profile in self.widths if latest and profile.epoch == latest.epoch)]
        return [
            *([(f"teacher {teacher.model}", teacher)] if teacher else []),
            *((self.label, profile) for profile in models if profile is not None),
        ]

    def relabelled(self, label: str) -> "Run":
        """The same, called otherwise; its name keeps what tells its range."""
        return replace(self, name=label + self.name.removeprefix(self.label), label=label)

    @property
    def latest(self) -> Profile | None:
        """What stands for the run: the best student, else the last one probed, else the model."""
        if self.profiles.best is not None:
            return self.profiles.best
        return next(iter([*self.profiles.students[::-1], *self.models]), None)

    @property
    def epochs(self) -> int:
        """Completed epochs of training, 0 where none is recorded."""
        return max((int(row["epoch"]) for row in self.metrics if "train/loss" in row), default=0)

    @property
    def data(self) -> str | None:
        """Fingerprint of the data it was trained and validated on, None where unknown."""
        fingerprint = (self.last_start.get("data") or {}).get("fingerprint")
        return None if fingerprint is None else str(fingerprint)

    @property
    def validation_images(self) -> int | None:
        """How many images its top-1 is a share of, None where unknown; of kNN those that are queries."""
        data = self.last_start.get("data") or {}
        images = data.get("val_queries", data.get("val_images"))
        return images if isinstance(images, int) and 0 < images < 2**31 else None

    @property
    def chance(self) -> float | None:
        """Top-1 by chance, percent, of a training without classes; None of others, and where unknown."""
        classes = (self.last_start.get("data") or {}).get("val_classes")
        return 100 / classes if isinstance(classes, int) and 0 < classes < 2**31 else None

    @property
    def loss_floors(self) -> dict[str, float]:
        """By term of the loss what it cannot go below, as the run's first start recorded it."""
        recorded = [start["floors"] for start in self.starts if isinstance(start.get("floors"), dict)]
        known: dict[str, Any] = recorded[0] if recorded else {}
        return {term: least for term, least in known.items() if isinstance(least, float) and 0 <= least < 1e9}

    @property
    def finished(self) -> bool:
        """Whether training ended as planned. Runs recorded before ends were: whether no epoch is lacking."""
        if "ended" in self.last_start:
            return succeeded(self.last_start)
        return 0 < (planned_epochs(self.config) or 0) <= self.epochs

    @property
    def gates(self) -> dict[str, list[tuple[int, int, float]]]:
        """By term that has one: student block, teacher block and gate of each pair."""
        given, found = self.last_start.get("gates"), {}
        for term, pairs in given.items() if isinstance(given, dict) else ():
            with suppress(TypeError, ValueError, OverflowError):
                known = [(int(student), int(block), float(gate)) for student, block, gate in pairs]
                found[term] = [pair for pair in known if min(pair[:2]) > 0 and max(pair[:2]) < _MOST_BLOCKS]
        return {term: pairs for term, pairs in found.items() if pairs}

    @property
    def bootstrap(self) -> bool:
        """Whether 95 % intervals were asked for in the place of standard errors."""
        return bool(self.last_start.get("bootstrap"))

    @property
    def last_start(self) -> dict[str, Any]:
        """The record of the latest start; {} without one."""
        return self.starts[-1] if self.starts else {}


def planned_epochs(config: dict[str, Any]) -> int | None:
    """How many epochs a configuration asks for, None where it does not say."""
    planned = (config.get("trainer") or {}).get("max_epochs")
    return planned if isinstance(planned, int) and planned > 0 else None


def left_out(unreadable: dict[str, list[str]]) -> list[str]:
    """One sentence a reason for which files cannot be read."""
    return [f"Left out: {listed(names)}: {reason}." for reason, names in unreadable.items()]


def fitting(
    students: list[Profile], teacher: Profile | None, best: Profile | None, warnings: list[str]
) -> RunProfiles:
    """Students of one depth and of an epoch each, in order: what one figure can show."""
    by_epoch: dict[int, Profile] = {}
    depth = next((len(profile.layers) for profile in (*students, best) if profile), 0)
    for student in students:
        if student.epoch is None or student.epoch in by_epoch or len(student.layers) != depth:
            warnings.append(
                f"A Profile of epoch {student.epoch} with {len(student.layers)} layers is left out: it does "
                f"not fit the others ({depth} layers, one an epoch)."
            )
        else:
            by_epoch[student.epoch] = student
    if best is not None and len(best.layers) != depth:
        warnings.append(
            f"The Profile of the best student is left out: it has {len(best.layers)} layers, not {depth}."
        )
        best = None
    return RunProfiles([by_epoch[epoch] for epoch in sorted(by_epoch)], teacher, best)


def range_name(value_range: str | Sequence[float]) -> str:
    """ "global", "layer", "scaled", or "0,1" for two numbers."""
    if isinstance(value_range, str):
        return value_range
    limits = [float(limit) for limit in value_range]
    return ",".join(str(int(limit)) if limit.is_integer() else repr(limit) for limit in limits)
