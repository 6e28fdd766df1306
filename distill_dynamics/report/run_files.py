"""Reading a run directory, as far as the run has come."""

import csv
import os
from pathlib import Path
from typing import NamedTuple

from distill_dynamics.dynamics.profile import Profile


class RunProfiles(NamedTuple):
    """The Profiles of one run, in the order in which the figures take them."""

    students: list[Profile]
    """One a probed epoch, in order of epochs."""
    teacher: Profile | None
    """None without a teacher."""
    best: Profile | None
    """The best checkpoint's, None before the end of `fit`."""

    def named(self) -> list[tuple[str, Profile]]:
        """What a table calls each: teacher, students by epoch, best."""
        return [
            *([("teacher", self.teacher)] if self.teacher else []),
            *((f"student, epoch {profile.epoch}", profile) for profile in self.students),
            *([(f"student, best (epoch {self.best.epoch})", self.best)] if self.best else []),
        ]


def load_profiles(folder: str | os.PathLike[str]) -> RunProfiles:
    """Read the Profiles in a run's `dynamics/`; none of them has to be there.

    Raises `UserError`, naming the file, where one cannot be read.
    """
    folder = Path(folder)
    students = [Profile.load(path) for path in sorted(folder.glob("student_epoch_*.npz"))]
    teacher, best = (
        Profile.load(path) if path.exists() else None
        for path in (folder / "teacher.npz", folder / "student_best.npz")
    )
    return RunProfiles(students, teacher, best)


def load_metrics(run_dir: str | os.PathLike[str]) -> list[dict[str, float]]:
    """The rows of a run's metrics.csv, one an epoch, without the empty cells; [] without the file."""
    path = Path(run_dir) / "metrics.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [{name: float(cell) for name, cell in row.items() if cell} for row in csv.DictReader(file)]
