"""The Profiles of one training, read from its run directory."""

import os
from pathlib import Path
from typing import NamedTuple

from distill_dynamics.dynamics.profile import Profile


class RunProfiles(NamedTuple):
    """The Profiles of one training, in the order in which the figures take them."""

    students: list[Profile]
    """One a probed epoch, in order of epochs."""
    teacher: Profile | None
    """None without a teacher."""
    best: Profile | None
    """The best checkpoint's, None before the end of `fit`."""

    def named(self) -> list[tuple[str, Profile]]:
        """What a table calls each: teacher, students by epoch, best."""
        known = self.best is not None and self.best.epoch is not None
        best = f"student, best (epoch {self.best.epoch})" if self.best and known else "student, best"
        return [
            *([("teacher", self.teacher)] if self.teacher else []),
            *((f"student, epoch {profile.epoch}", profile) for profile in self.students),
            *([(best, self.best)] if self.best else []),
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


def until_epoch(profiles: RunProfiles, epoch: float) -> RunProfiles:
    """Those of no later epoch: a run that went back to an older checkpoint has yet to make these again."""
    best = profiles.best
    if best is not None and best.epoch is not None and best.epoch > epoch:
        best = None
    return profiles._replace(
        students=[profile for profile in profiles.students if (profile.epoch or 0) <= epoch], best=best
    )
