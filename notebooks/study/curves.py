"""Tables of the curves: their shapes, what of them is scale, channel spectra, and numbers of probe images."""

from collections.abc import Iterator
from functools import partial
from typing import get_args

import numpy as np
from evidence import (
    OF_CURVES,
    Entry,
    Floats,
    Trained,
    arms,
    bootstrap,
    by_block,
    combined,
    interval,
    over_images,
    read,
    results,
    students,
    u_depth,
)
from numpy.typing import NDArray
from rows import CONTROLS, TEACHERS

from distill_dynamics.dynamics import Profile
from distill_dynamics.dynamics.profiler import RangeMode
from distill_dynamics.dynamics.signature import LEAST_DEPTH

CAITS = ("teacher_cait24", *CONTROLS)


def shapes() -> Iterator[Entry]:
    """Question 1: entropy by block and epoch, bits, under the paper's range of the bins and each block's own.

    `u` counts runs whose curve is a U: by `signature`, beyond the images' errors, and `LEAST_DEPTH` deep;
    `u_of_any_depth` counts what was recorded, which had no least depth, and `deepest` is the deepest of
    these. `ever` counts runs and epochs up to this one, without those before training, and `ever_u` the U's
    among them. `lowest` is the lowest block of the mean curve over runs; `lowest_min` and `_max` are of
    single runs. `fall` and `rise` are `arms`.
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
    their cause. Intervals are over seeds, of a run of one seed over images; `sd_` are over seeds too.
    """
    for row in (*TEACHERS, *CONTROLS, *students()):
        for value_range in get_args(RangeMode):
            files = [run.folder / "ranges" / f"{value_range}.npz" for run in results().get(row, {}).values()]
            found = [Profile.load(file) for file in files if file.exists()]
            if not found:
                continue
            entry: Entry = {"name": f"{row} {value_range}", "row": row, "range": value_range}
            entry["runs"] = len(found)
            for name, value in OF_CURVES.items():
                if row in TEACHERS or row in CONTROLS:
                    entry |= over_images(found[0], value, f"{name}_")
                else:
                    entry |= interval((value(p.entropy, p.magnitude) for p in found), f"{name}_")
            curves = np.array([p.entropy for p in found])
            spread = curves.std(axis=0, ddof=1) if len(curves) > 1 else []
            yield entry | by_block(curves.mean(axis=0)) | by_block(spread, "sd")


def larger_input() -> Iterator[Entry]:
    """Question 1: fall and rise at the end with a larger input minus those with the data's own, bits.

    One range for all blocks. `students`: without distillation, over seeds; `teacher`: over images, the same
    ones for both CaiTs.
    """
    pair = {"none_std01": 1, "none": -1}
    if pair.keys() <= results().keys():
        entry: Entry = {"name": "students"}
        for arm, name in enumerate(("fall", "rise")):
            entry |= interval(combined(pair, partial(_arm, arm)), f"{name}_")
        yield entry
    files = [results()[row][0].folder / "ranges" / "global.npz" for row in CAITS if row in results()]
    if len(files) == len(CAITS) and all(file.exists() for file in files):
        teacher, control = (Profile.load(file).entropy_images for file in files)
        entry = {"name": "teacher"}
        for arm, name in enumerate(("fall", "rise")):

            def of(rows: NDArray[np.int64], arm: int = arm) -> float:
                return arms(teacher[rows].mean(axis=0))[arm] - arms(control[rows].mean(axis=0))[arm]

            entry |= bootstrap(of, len(teacher), f"{name}_")
        yield entry


def _arm(which: int, run: Trained) -> float:
    return arms(run.curve("entropy", run.last))[which]


def spectra() -> Iterator[Entry]:
    """Question 6: channel spectra at the end, by `spectrum_signature`."""
    names = [
        f"{what}_{where}" for what in ("flatness", "low", "high") for where in ("early", "middle", "late")
    ]
    for row in (*TEACHERS, "softkd", "spectralkd_l1", "softkd_60", "spectralkd_l1_60"):
        found = list(results().get(row, {}).values())
        entry: Entry = {"name": row, "runs": len(found)}
        for name in names if found else ():
            entry |= interval((run.said(name) for run in found), f"{name}_")
        yield entry


def images() -> Iterator[Entry]:
    """Question 7: what is said of one model by the number of probe images, entropies in bits.

    `level` is the mean over blocks, `above_most` that minus the level of most images: more images widen the
    bins' range. `shape` is how far the curve, its level taken away, is from that of most images: root mean
    square. `u` as in `shapes`.
    """
    for row in [*TEACHERS, *students()]:
        for run in results().get(row, {}).values():
            counts = sorted(int(path.name.removeprefix("images_")) for path in run.folder.glob("images_*"))
            curves = {
                count: np.array(
                    [float(b["entropy"]) for b in read(run.folder / f"images_{count}" / "curves.csv")]
                )
                for count in counts
            }
            for count, entropy in curves.items():
                most = curves[counts[-1]]
                (said,) = read(run.folder / f"images_{count}" / "table.csv")
                entry: Entry = {"name": f"{run.folder.name} {count}", "run": run.folder.name, "images": count}
                entry |= {"level": entropy.mean(), "above_most": entropy.mean() - most.mean()}
                entry |= {"shape": np.std(entropy - most), "lowest": float(said["nadir"])}
                yield entry | {"u": int(u_depth(said) >= LEAST_DEPTH)}
