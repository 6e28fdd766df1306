"""What a run's numbers say, in sentences that claim no more than they show."""

from distill_dynamics.dynamics.profile import Profile
from distill_dynamics.dynamics.signature import signature
from distill_dynamics.report.run_files import RunProfiles
from distill_dynamics.report.tables import accuracies


def summary(metrics: list[dict[str, float]], profiles: RunProfiles) -> str:
    """Who reaches what, and what shape the entropy of student and teacher has."""
    found = accuracies(metrics)
    said = []
    if "student, best" in found:
        best, last = found["student, best"], found["student, last"]
        at_end = ", its last" if best == last else f", and {last.top1:.2f} % at its last, epoch {last.epoch}"
        said.append(f"The student reaches {best.top1:.2f} % top-1 at its best, epoch {best.epoch}{at_end}.")
    if "teacher" in found:
        said.append(f"The teacher has {found['teacher'].top1:.2f} % top-1.")
    if {"teacher", "student, best"} <= found.keys():
        gap = best.top1 - found["teacher"].top1
        place = f"{abs(gap):.2f} points {'below' if gap < 0 else 'above'}" if gap else "level with"
        said.append(f"The best student is {place} the teacher.")
    student = profiles.best or (profiles.students[-1] if profiles.students else None)
    if student is not None:
        which = "best student" if profiles.best else "last probed student"
        said.append(_shape(f"Entropy of the {which} (epoch {student.epoch})", student))
    if profiles.teacher is not None:
        said.append(_shape("Entropy of the teacher", profiles.teacher))
    return " ".join(said) or "Nothing has been measured yet."


def _shape(subject: str, profile: Profile) -> str:
    found, images = signature(profile), len(profile.entropy_images)
    if images < 2:
        shape = "one image is too few to tell whether the curve is a U"
    elif found.u_shaped:
        shape = f"a U, {found.depth:.3f} ± {found.depth_se:.3f} bits deep at its shallower side"
    else:
        shape = "no U"
    return f"{subject} is lowest at block {found.nadir} of {len(profile.layers)}: {shape}."


def missing(metrics: list[dict[str, float]], profiles: RunProfiles, starts: list, config: str) -> list[str]:
    """What the run directory does not hold, or holds of an earlier time, in sentences."""
    columns = {name for row in metrics for name in row}
    wanted: dict[str, object] = {
        "Training has not begun: run.json records no start.": starts,
        "No configuration: there is no config.yaml.": config,
        "No completed epoch: metrics.csv has no training loss.": "train/loss" in columns,
        "No accuracy of the student: metrics.csv has no val/acc1.": "val/acc1" in columns,
        "No accuracy of a teacher: metrics.csv has no teacher/acc1.": "teacher/acc1" in columns,
        "No Profile of a teacher: there is no dynamics/teacher.npz.": profiles.teacher,
        "No Profile of the student in training: dynamics/ has no student_epoch_*.npz.": profiles.students,
        "No Profile of the best student: there is no dynamics/student_best.npz, written when fit "
        "ends.": profiles.best,
    }
    best = accuracies(metrics).get("student, best")
    if (
        profiles.best and best and profiles.best.epoch != best.epoch
    ):  # continued after its end, not ended again
        sentence = (
            f"epoch {profiles.best.epoch}, the best now is epoch {best.epoch}: fit has not ended since."
        )
        wanted[f"The Profile of the best student is of {sentence}"] = False
    return [sentence for sentence, there in wanted.items() if not there]
