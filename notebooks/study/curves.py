"""Tables of the curves: their shapes, what of them is scale, channel spectra, and numbers of probe images."""

from collections.abc import Callable, Iterator
from typing import get_args

import numpy as np
from evidence import (
    LEAST_DEPTH,
    Entry,
    Floats,
    Trained,
    arms,
    bootstrap,
    by_block,
    interval,
    over_images,
    read,
    results,
    students,
    u_depth,
)
from numpy.typing import NDArray
from rows import CONTROLS, TEACHERS
from scipy import stats

from distill_dynamics.dynamics import Profile
from distill_dynamics.dynamics.profiler import RangeMode

CAITS = ("teacher_cait24", *CONTROLS)


def shapes() -> Iterator[Entry]:
    """Question 1: entropy by block and epoch, bits, under the paper's range of the bins and each block's own.

    `u` counts runs whose curve is a U: by `signature`, beyond the images' errors, and `LEAST_DEPTH` deep;
    `u_of_any_depth` counts by `signature` alone, and `deepest` is the deepest of these. `ever` counts runs
    and epochs up to this one, without those before training, and `ever_u` the U's among them. `lowest` is
    the lowest block of the mean curve over runs; `lowest_min` and `_max` are of single runs. `fall` and
    `rise` are `arms`.
    """
    for row in (*CAITS, *students()):
        chosen: dict[tuple[str, int], list[tuple[Floats, float]]] = {}
        for run in results().get(row, {}).values():
            for value_range, epoch, curve, depth in _curves(run):
                chosen.setdefault((value_range, epoch), []).append((curve, depth))
        ever: dict[str, list[bool]] = {}
        for (value_range, epoch), found in sorted(chosen.items()):
            u = [depth >= LEAST_DEPTH for _, depth in found]
            if epoch:
                ever.setdefault(value_range, []).extend(u)
            curves = np.array([curve for curve, _ in found])
            falls, rises = zip(*map(arms, curves), strict=True)
            lowest = curves.argmin(axis=1) + 1
            entry: Entry = {"name": f"{row} {value_range} {epoch}", "row": row, "range": value_range}
            entry |= {"epoch": epoch, "runs": len(found), "u": sum(u)}
            entry |= {"u_of_any_depth": sum(depth > 0 for _, depth in found)}
            entry |= {"deepest": max(depth for _, depth in found)}
            entry |= {"ever": len(ever.get(value_range, [])), "ever_u": sum(ever.get(value_range, []))}
            entry |= {"lowest": curves.mean(axis=0).argmin() + 1}
            entry |= {"lowest_min": lowest.min(), "lowest_max": lowest.max()}
            entry |= interval(falls, "fall_") | interval(rises, "rise_")
            yield entry | by_block(curves.mean(axis=0))


def _curves(run: Trained) -> Iterator[tuple[str, int, Floats, float]]:
    """Range, epoch, curve, and its `u_depth`."""
    signature = "dynamics/student/signature/"
    for epoch, numbers in run.epochs.items():
        if f"{signature}u_shaped" in numbers:
            yield "global", epoch, run.curve("entropy", epoch), u_depth(numbers, signature)
    for epoch, (curve, depth) in run.own_range.items():
        yield "layer", epoch, curve, depth


def ranges() -> Iterator[Entry]:
    """Question 2: the entropy at the end under each range of the bins, bits.

    `fall` and `rise` are `arms`. Of a straight line in log2 magnitude over blocks, `r2` is the share of the
    curve's variance that it explains and `slope` its bits a doubling; two smooth curves correlate whatever
    their cause. Intervals are over seeds, of a run of one seed over images; `sd_` are over seeds too. The
    entry "larger input" has the teacher's arms minus those of the same CaiT with the students' input.
    """
    numbers: dict[str, Callable[[Floats, Floats], float]] = {
        "fall": lambda entropy, magnitude: arms(entropy)[0],
        "rise": lambda entropy, magnitude: arms(entropy)[1],
        "r2": lambda entropy, magnitude: stats.linregress(np.log2(magnitude), entropy).rvalue ** 2,
        "slope": lambda entropy, magnitude: stats.linregress(np.log2(magnitude), entropy).slope,
    }
    for row in (*TEACHERS, *CONTROLS, *students()):
        for value_range in get_args(RangeMode):
            files = [run.folder / "ranges" / f"{value_range}.npz" for run in results().get(row, {}).values()]
            found = [Profile.load(file) for file in files if file.exists()]
            if not found:
                continue
            entry: Entry = {"name": f"{row} {value_range}", "row": row, "range": value_range}
            entry["runs"] = len(found)
            for name, value in numbers.items():
                if row in TEACHERS or row in CONTROLS:
                    entry |= over_images(found[0], value, f"{name}_")
                else:
                    entry |= interval((value(p.entropy, p.magnitude) for p in found), f"{name}_")
            curves = np.array([p.entropy for p in found])
            spread = curves.std(axis=0, ddof=1) if len(curves) > 1 else []
            yield entry | by_block(curves.mean(axis=0)) | by_block(spread, "sd")
    yield from _larger_input()


def _larger_input() -> Iterator[Entry]:
    """The same images for both, so that their resamples are paired."""
    (control,) = CONTROLS
    files = [results()[row][0].folder / "ranges" / "global.npz" for row in CAITS if row in results()]
    if len(files) < 2 or not all(file.exists() for file in files):
        return
    teacher, other = (Profile.load(file).entropy_images for file in files)
    entry: Entry = {"name": "larger input global", "row": control, "range": "difference", "runs": 1}
    for name, arm in (("fall", 0), ("rise", 1)):

        def of(rows: NDArray[np.int64], arm: int = arm) -> float:
            return arms(teacher[rows].mean(axis=0))[arm] - arms(other[rows].mean(axis=0))[arm]

        entry |= bootstrap(of, len(teacher), f"{name}_")
    yield entry


def spectra() -> Iterator[Entry]:
    """Question 6: channel spectra before training and at the end, by `spectrum_signature`."""
    names = [
        f"{what}_{where}" for what in ("flatness", "low", "high") for where in ("early", "middle", "late")
    ]
    learners = ("softkd", "spectralkd_l1", "softkd_60", "spectralkd_l1_60")
    for row in (*TEACHERS, *learners):
        found = list(results().get(row, {}).values())
        for when in ("untrained", "trained") if found else ():
            epochs = [0 if when == "untrained" else run.last for run in found]
            entry: Entry = {"name": f"{row} {when}", "row": row, "when": when, "runs": len(found)}
            for name in names:
                numbers = [run.said(name, epoch) for run, epoch in zip(found, epochs, strict=True)]
                entry |= interval(numbers, f"{name}_")
            yield entry


def images() -> Iterator[Entry]:
    """Question 7: what is said of one model by the number of probe images, entropies in bits.

    `width` is of the 95 % bootstrap interval of a block's entropy, median over blocks: the bins stay as they
    are. `covered` counts the blocks whose interval has the value that most images give; there, as in `level`,
    the mean over blocks, and `above_most`, that minus the level of most images, the bins move, since more
    images have a wider range. `fall` and `rise` are `arms`, and `shape` is how far the curve, its level taken
    away, is from that of most images: root mean square.
    """
    for row in [*TEACHERS, *students()]:
        for run in results().get(row, {}).values():
            counts = sorted(int(path.name.removeprefix("images_")) for path in run.folder.glob("images_*"))
            found = {count: read(run.folder / f"images_{count}" / "curves.csv") for count in counts}
            for count, curve in found.items():
                entropy, low, high = (
                    np.array([float(block[f"entropy{bound}"]) for block in curve])
                    for bound in ("", "_low", "_high")
                )
                most = np.array([float(block["entropy"]) for block in found[counts[-1]]])
                (said,) = read(run.folder / f"images_{count}" / "table.csv")
                entry: Entry = {"name": f"{run.folder.name} {count}", "run": run.folder.name, "images": count}
                entry |= {"width": np.median(high - low), "level": entropy.mean()}
                entry["above_most"] = entropy.mean() - most.mean()
                entry |= {"blocks": len(curve), "covered": int(((low <= most) & (most <= high)).sum())}
                entry |= {"lowest": float(said["nadir"]), "lowest_se": float(said["nadir_se"])}
                entry |= dict(zip(("fall", "rise"), arms(entropy), strict=True))
                entry["shape"] = np.std(entropy - most)
                yield entry | {
                    "u": int(u_depth(said) >= LEAST_DEPTH),
                    "u_of_any_depth": float(said["u_shaped"]),
                }
