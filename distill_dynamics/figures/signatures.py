"""How the shape of the entropy curve changes over the epochs of training."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from distill_dynamics.dynamics.profile import FloatArray, Profile
from distill_dynamics.dynamics.signature import gap, signature
from distill_dynamics.figures.by_epoch import Panel, draw_panels, epoch_names
from distill_dynamics.figures.curves import Curve, CurveLine, CurveMeta, curves, mean_notes
from distill_dynamics.figures.order import ordered
from distill_dynamics.figures.style import STYLE, LineStyle, footer, run_styles, wrapped
from distill_dynamics.runs.profiles import RunProfiles

_LOWEST, _DIP = "Lowest block", "Smaller of fall and rise"
_SIGNATURES = {
    _LOWEST: "",
    _DIP: "bits",
    "Entropy of the last block": "bits",
    "Distance to the teacher": "bits",
}
"""Title of a panel → unit."""


@style.context(STYLE)
def signature_by_epoch(
    runs: Mapping[str, RunProfiles], styles: Mapping[str, LineStyle] | None = None
) -> Figure:
    """How the shape of the entropy curve changes over training, a line a run.

    Panels: block of lowest entropy, the smaller of fall and rise (bits; the depth of the U where it is one,
    else its marker is open), entropy of the last block (bits), and distance to the teacher (bits, root mean
    square at matched relative depth). Bands are ± one standard deviation over resamples of the images, in the
    first two, and ± one standard error over images in the third. `styles` as in `training_curves`.

    Raises `ValueError` where no run has a student whose entropy is known; `UserError` as `curve_evolution`,
    within one run.
    """
    students = {
        name: [profile for profile in ordered(run.students) if profile.epoch is not None]
        for name, run in runs.items()
        if any(profile.known("entropy") for profile in run.students)
    }
    if not students:
        raise ValueError("no Profiles to draw: no run has a student in training whose entropy is known")
    signatures = {name: _signatures(profiles, runs[name].teacher) for name, profiles in students.items()}
    panels = {}
    for number, (title, unit) in enumerate(_SIGNATURES.items()):
        drawn = {
            name: _signature_curve(name, students[name], title, *values[number])
            for name, values in signatures.items()
            if np.isfinite(values[number][0]).any()
        }
        if drawn:  # without a teacher there is no distance, and no panel for it
            panels[title] = Panel(wrapped(title), unit.capitalize() or "Block", drawn)
    figure, axes, legend = draw_panels([*panels.values()], styles or run_styles([*runs]), height=3)
    for ax, title in zip(axes, panels, strict=True):
        if title == _LOWEST:
            ax.yaxis.set_major_locator(MaxNLocator(integer=True))
            deepest = max(len(profile.layers) for profiles in students.values() for profile in profiles)
            low, high = ax.get_ylim()
            ax.set_ylim(max(low, 0.5), min(high, deepest + 0.5))  # bands go beyond the blocks
        if title == _DIP:
            for line in curves([ax]):
                _open_markers(ax, line, [students[name] for name in line.meta.of or [str(line.meta.run)]])
    notes = [
        "Fall and rise: the first and the last block's entropy above the lowest's. Open markers: the curve "
        "is no U, or too few images tell; of a mean, that of one of its runs."
    ]
    if any(len(profile.entropy_images) > 1 for profiles in students.values() for profile in profiles):
        notes.append("Bands: ± standard deviation over resamples of the images; none for the distance.")
    footer(figure, [*notes, *mean_notes(axes)], legend if len(runs) > 1 else None)
    return figure


def _open_markers(ax: Axes, line: CurveLine, runs: Sequence[Sequence[Profile]]) -> None:
    """White markers where the curve is no U; of a mean, where that of one of its runs is none."""
    if not line.get_marker():
        return
    epochs, y = np.asarray(line.get_data(), dtype=float)
    u = [all(signature(profile).u_shaped for profile in probes) for probes in zip(*runs, strict=True)]
    no_u = ~np.array(u) & np.isfinite(y)
    if no_u.any():
        white = Line2D(epochs[no_u], y[no_u])
        white.update_from(line)
        white.set(linestyle="none", markerfacecolor="white", label="")
        line.companions.append(ax.add_line(white))


def _signatures(students: list[Profile], teacher: Profile | None) -> list[tuple[FloatArray, FloatArray]]:
    """Of each of `_SIGNATURES`: the value of each student and its uncertainty."""
    signatures = [signature(profile) for profile in students]
    known = [np.isfinite(profile.entropy).all() for profile in students]
    nadir, nadir_se, depth, depth_se = (
        np.where(known, [getattr(one, name) for one in signatures], np.nan)
        for name in ("nadir", "nadir_se", "depth", "depth_se")
    )
    last, last_se = (
        np.array([getattr(profile, name)[-1] for profile in students]) for name in ("entropy", "entropy_se")
    )
    distance = [np.nan if teacher is None else gap(p, teacher).entropy_distance for p in students]
    unknown = np.full(len(students), np.nan)
    return [(nadir, nadir_se), (depth, depth_se), (last, last_se), (np.array(distance), unknown)]


def _signature_curve(
    run: str, students: list[Profile], title: str, y: FloatArray, error: FloatArray
) -> Curve:
    epochs = np.array([profile.epoch for profile in students], dtype=float)
    meta = CurveMeta("run", run=run, measure=title.lower(), unit=_SIGNATURES[title])
    measured = (students[0].probe_id, students[0].bins)
    return Curve(epochs, y, meta, epoch_names(epochs), error, measured)
