"""The Profiles of one training, read from its run directory."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from distill_dynamics.dynamics.profile import Profile
from distill_dynamics.errors import UserError


class RunProfiles(NamedTuple):
    """The Profiles of one training, in the order in which the figures take them."""

    students: list[Profile]
    """One a probed epoch, in order of epochs."""
    teacher: Profile | None
    """None without a teacher."""
    best: Profile | None
    """The best checkpoint's, None before the end of `fit`."""
    others: Mapping[str, Profile] = {}
    """Of several teachers those after the first, by name."""

    def teachers(self) -> list[Profile]:
        """All of them, the first one first."""
        return [*([self.teacher] if self.teacher else []), *self.others.values()]

    def named(self) -> list[tuple[str, Profile]]:
        """What a table calls each: teachers, students by epoch, best."""
        known = self.best is not None and self.best.epoch is not None
        best = f"student, best (epoch {self.best.epoch})" if self.best and known else "student, best"
        return [
            *([("teacher", self.teacher)] if self.teacher else []),
            *((f"teacher {name}", profile) for name, profile in self.others.items()),
            *((f"student, epoch {profile.epoch}", profile) for profile in self.students),
            *([(best, self.best)] if self.best else []),
        ]


def load_profiles(
    folder: str | os.PathLike[str], unreadable: dict[str, list[str]] | None = None
) -> RunProfiles:
    """Read the Profiles in a run's `dynamics/`; none of them has to be there.

    Raises `UserError`, naming the file, where one cannot be read; but see `read_profile`.
    """
    folder = Path(folder)
    students = [read_profile(path, unreadable) for path in sorted(folder.glob("student_epoch_*.npz"))]
    teacher, best = (read_profile(folder / name, unreadable) for name in ("teacher.npz", "student_best.npz"))
    found = {path: read_profile(path, unreadable) for path in sorted(folder.glob("teacher_*.npz"))}
    others = {path.stem.removeprefix("teacher_"): one for path, one in found.items() if one is not None}
    return RunProfiles([student for student in students if student is not None], teacher, best, others)


def read_profile(path: Path, unreadable: dict[str, list[str]] | None = None) -> Profile | None:
    """A Profile, None where there is no such file.

    Raises `UserError` where it cannot be read; where `unreadable` is given, the file's name goes there
    instead, by reason, and None comes back.
    """
    try:
        return Profile.load(path) if path.exists() else None
    except UserError as error:
        if unreadable is None:
            raise
        unreadable.setdefault(str(error).removeprefix(f"{path}: "), []).append(path.name)
        return None


def until_epoch(profiles: RunProfiles, epoch: float) -> RunProfiles:
    """Those of no later epoch: a run that went back to an older checkpoint has yet to make these again."""
    best = profiles.best
    if best is not None and best.epoch is not None and best.epoch > epoch:
        best = None
    return profiles._replace(
        students=[profile for profile in profiles.students if (profile.epoch or 0) <= epoch], best=best
    )
