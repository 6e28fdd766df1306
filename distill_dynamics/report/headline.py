"""One sentence that says what the curves of a page show, and no more than the numbers hold."""

import numpy as np

from distill_dynamics.dynamics.profile import Profile
from distill_dynamics.dynamics.signature import signature
from distill_dynamics.dynamics.signature.shape import LEAST_DEPTH
from distill_dynamics.figures.order import distinct
from distill_dynamics.report.study import Study
from distill_dynamics.tables import measured, shape


def headline(study: Study) -> str:
    """One sentence; "" where no curve over depth was measured."""
    known = [(run, run.latest) for run in study.runs if run.latest is not None and has_shape(run.latest)]
    if not known:
        return ""
    first, latest = known[0]
    teachers = [t for t in distinct(run.profiles.teacher for run, _ in known) if has_shape(t)]
    behind = "; " + _shape_of(teachers[0], "the teacher's") if len(teachers) == 1 else ""
    if len(study.runs) == 1:
        who = "The student's entropy" if first.kind == "fit" else "The entropy"
        return f"{_shape_of(latest, who)}{behind}."
    forms: dict[str, list[str]] = {}
    for run, profile in known:
        form = shape(profile)
        forms.setdefault(form if form in ("U", "no U") else "unknown", []).append(run.name)
    many = len(known)
    u, unknown = len(forms.get("U", [])), len(forms.get("unknown", []))
    named = f" ({study.listed(forms['U'])})" if 0 < u <= 3 else ""
    unsure = f", and of {unknown} it cannot be told" if unknown else ""
    students = "students" if all(run.kind == "fit" for run, _ in known) else "curves"
    return f"The entropy is a U in {u or 'none'} of {many} {students}{named}{unsure}{behind}."


def has_shape(profile: Profile) -> bool:
    """Whether its entropy is known and one over depth."""
    return measured(profile) and len(profile.layers) > 1


def _shape_of(profile: Profile, who: str) -> str:
    """Such as "the teacher's is a U: 0.10 bits down to block 4 of 12, 0.24 up from it"."""
    curve, form = signature(profile), shape(profile)
    place = f"block {curve.nadir} of {profile.blocks[-1]}"
    down, up = f"{curve.depth_left:.2f}", f"{curve.depth_right:.2f}"
    if form not in ("U", "no U"):
        return f"{who} is lowest at {place}, and whether it is a U is {form}"
    if curve.u_shaped:
        return f"{who} is a U: {down} bits down to {place}, {up} up from it{_scale(profile)}"
    if np.ptp(profile.entropy) < LEAST_DEPTH:
        return f"{who} shows nothing: its blocks differ by less than {LEAST_DEPTH} bits"
    sides = (curve.depth_left, curve.depth_left_se), (curve.depth_right, curve.depth_right_se)
    falls, rises = (depth > max(LEAST_DEPTH, 2 * error) for depth, error in sides)
    if falls and rises:  # a second dip, or chance
        told = f"{down} bits below its first and {up} below its last, but with a second dip or too unsure"
    elif falls or rises:
        told = f"{down} bits below its first" if falls else f"{up} bits below its last"
    else:
        told = f"but neither end is above it by {LEAST_DEPTH} bits and by more than chance"
    return f"{who} is no U: lowest at {place}, {told}"


def _scale(profile: Profile) -> str:
    """Whether a U may be one of the layers' scale."""
    agrees = signature(profile).magnitude_agrees
    if profile.range_mode in ("layer", "scaled"):
        return ", in bins that follow each layer's scale"
    if agrees is None or profile.range_mode != "global":
        return ""
    if agrees:
        return " (its magnitude has the same shape, so this may be scale alone)"
    return " (its magnitude has another shape)"
