"""The study's numbers: from results/, a CSV a question in tables/, which figures and sentences are made of.

python notebooks/study/tables.py
"""

import csv
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np
from evidence import (
    Entry,
    Floats,
    Trained,
    arms,
    best_top1,
    bootstrap,
    combined,
    compared,
    images_per_s,
    interval,
    last_top1,
    over_images,
    published,
    q_values,
    rank_correlation,
    read,
    results,
    students,
    term_share,
    training_hours,
)
from numpy.typing import NDArray
from real_vit_table import real_vit
from rows import ROWS, TEACHERS
from scipy import stats

from distill_dynamics import Backbone
from distill_dynamics.dynamics import Profile
from distill_dynamics.dynamics.profiler import RangeMode

TABLES = Path(__file__).parent / "tables"

CONTRASTS: dict[str, dict[str, int]] = {
    "SpectralKD L 1 minus F 1": {"spectralkd_l1": 1, "spectralkd_f1": -1},
    "ProjectorKD L 1 minus F 1": {"projectorkd_l1": 1, "projectorkd_f1": -1},
    "SpectralKD L 1, half β minus whole": {"spectralkd_l1_beta01": 1, "spectralkd_l1": -1},
    "ProjectorKD L 1, frozen minus trained": {"projectorkd_l1_frozen": 1, "projectorkd_l1": -1},
    "SpectralKD, F 1 and L 1 minus L 1 at half β": {"spectralkd_f1_l1": 1, "spectralkd_l1_beta01": -1},
    "SoftKD, longer minus shorter": {"softkd_long": 1, "softkd": -1},
    "SoftKD, 60 epochs minus 12": {"softkd_60": 1, "softkd": -1},
    "gain of L 1, longer minus shorter": {
        "spectralkd_l1_long": 1,
        "softkd_long": -1,
        "spectralkd_l1": -1,
        "softkd": 1,
    },
    "gain of L 1, 60 epochs minus 12": {
        "spectralkd_l1_60": 1,
        "softkd_60": -1,
        "spectralkd_l1": -1,
        "softkd": 1,
    },
    "SpectralKD L 1, ResNet minus CaiT": {"spectralkd_l1_resnet": 1, "spectralkd_l1": -1},
    "gain of L 1, ResNet minus CaiT": {
        "spectralkd_l1_resnet": 1,
        "softkd_resnet": -1,
        "spectralkd_l1": -1,
        "softkd": 1,
    },
}
"""Sums of rows, seed by seed, beside each row's difference from its baseline."""
BEGINNING = (3, 4)
"""The first two epochs at the full rate, of twelve, chosen after the curves had been seen.

The two before have the warm-up's, after which every run's magnitude jumps.
"""
PAPERS_BEGINNING = (2, 3)
"""Where the paper has it: a tenth to three tenths of the training (epochs 30 to 90 of 300)."""
EARLY = (1, 3)
"""Epochs of twelve at which the dynamics might tell how a row will end; 1 is at the warm-up's rate."""


def setup() -> Iterator[Entry]:
    """What the runs were given, from their own config.yaml; parameters are counted.

    `hours` are of a core, in training steps alone: of all runs, teachers too. `spread` is the standard
    deviation over seeds of the last epoch's top-1, points, pooled over rows; `known` is half the interval
    that follows from it for the difference of two rows of so many seeds, not paired.
    """
    values: dict[str, float] = {"runs": sum(map(len, students().values()))}
    values["hours"] = sum(training_hours(run) for found in results().values() for run in found.values())
    models = {"softkd": "student", "teacher_cait24": "CaiT", "teacher_resnet": "ResNet"}
    models |= {"softkd_long": "", "softkd_60": "", "spectralkd_l1": ""}
    for row, model in models.items():
        if row not in results():
            continue
        config = results()[row][0].config
        values[f"{row} epochs"] = config["trainer"]["max_epochs"]
        if row == "softkd":
            values["batch"] = config["data"]["init_args"]["batch_size"]
            values["views"] = config["data"]["init_args"]["views"]
            values |= {what: config["model"][what] for what in ("alpha", "label_smoothing")}
            given = config["model"]["optimizer"]["init_args"]
            values |= {what: given[what] for what in ("lr", "weight_decay")}
            values["probe images"] = config["probe"]["n_images"]
        if row == "spectralkd_l1":
            values["beta"] = config["model"]["terms"]["spectral"]["weight"]
        if model:
            made = config["model"]["student"]["init_args"]
            kwargs = made["timm_kwargs"]
            parameters = Backbone(made["name"], timm_kwargs=kwargs).parameters()
            values[f"{model} parameters"] = sum(p.numel() for p in parameters)
            values |= {f"{model} {what}": kwargs[what] for what in ("depth", "embed_dim") if what in kwargs}
    groups = [np.array([last_top1(run) for run in found]) for found in students().values()]
    freedom = sum(len(group) - 1 for group in groups)
    if freedom:
        values["spread"] = math.sqrt(sum(((group - group.mean()) ** 2).sum() for group in groups) / freedom)
        for seeds in (3, 5):
            t = stats.t.ppf(0.975, freedom)
            values[f"known {seeds}"] = t * values["spread"] * math.sqrt(2 / seeds)
    for name, value in values.items():
        yield {"name": name, "value": value}


def runs() -> Iterator[Entry]:
    """Every run: accuracies in percent; `term` is its feature term's share of the loss in the last epoch."""
    for row in [*TEACHERS, *students()]:
        for seed, run in results().get(row, {}).items():
            top1, end = run.top1(), run.epochs[run.last]
            yield {
                "name": f"{row} {seed}",
                "epochs": run.last,
                "last": top1[-1],
                "best": top1.max(),
                "best_epoch": int(top1.argmax()) + 1,
                "val_loss": end["val/loss"],
                "images_per_s": images_per_s(run),
                "term": term_share(run),
            }


def accuracy() -> Iterator[Entry]:
    """Question 3: the paper's Table 1 in small. Top-1 in percent, differences from the baseline in points.

    `term` is the feature term's share of the loss in the last epoch, `paper` the paper's difference, `pairs`
    the number of seeds in a difference; `q`, of the last epoch's, is corrected for the number of rows with a
    feature term.
    """
    differences = {
        row: combined({row: 1, other: -1}, last_top1)
        for row, other in compared().items()
        if results()[row][0].terms
    }
    q = q_values(differences)
    for row, found in students().items():
        entry: Entry = {"name": row, "epochs": found[0].last, "seeds": len(found)}
        entry["term"] = np.mean([term_share(run) for run in found])
        for what, value in (("last", last_top1), ("best", best_top1)):
            values = [value(run) for run in found]
            entry[f"{what}_mean"] = np.mean(values)
            entry[f"{what}_sd"] = np.std(values, ddof=1) if len(values) > 1 else math.nan
            if other := compared().get(row):
                weights = {row: 1, other: -1}
                entry |= {"baseline": other, "pairs": len(combined(weights, value))}
                entry |= {"paper": published(weights)}
                entry |= interval(combined(weights, value), f"{what}_difference_")
        yield entry | ({"q": q[row]} if row in q else {})


def saving() -> Iterator[Entry]:
    """What the teacher's cache saves: time of an epoch with it over that with the teacher, seed by seed."""
    found = results()
    seeds = sorted(found.get("softkd", {}).keys() & found.get("softkd_online", {}).keys())
    ratios = [images_per_s(found["softkd_online"][s]) / images_per_s(found["softkd"][s]) for s in seeds]
    if ratios:
        numbers = {"ratio": np.mean(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios)}
        yield {"name": "softkd", "seeds": len(seeds), **numbers}


def contrasts() -> Iterator[Entry]:
    """Questions 3, 4 and 6: `CONTRASTS`, in points of top-1 after the last epoch; `paper` has the paper's."""
    for name, weights in CONTRASTS.items():
        if weights.keys() <= results().keys():
            values = combined(weights, last_top1)
            entry = {"name": name, "seeds": len(values), "paper": published(weights)}
            yield entry | interval(values, "points_")


def courses() -> Iterator[Entry]:
    """Question 3: what L 1 adds to SoftKD at each epoch of trainings of different lengths, points of top-1.

    Trainings of different lengths are at different rates at one epoch: it is their ends that compare.
    """
    for row in ("spectralkd_l1", "spectralkd_l1_long", "spectralkd_l1_60"):
        if (other := compared().get(row)) is None:
            continue
        last = students()[row][0].last
        for epoch in range(1, last + 1):
            at = partial(_top1, epoch)
            entry: Entry = {"name": f"{row} {epoch}", "row": row, "epoch": epoch}
            entry |= {
                "softkd_mean": np.mean(combined({other: 1, row: 0}, at)),
                "l1_mean": np.mean(combined({row: 1, other: 0}, at)),
            }
            yield entry | interval(combined({row: 1, other: -1}, at), "gain_")


def _top1(epoch: int, run: Trained) -> float:
    return run.epochs[epoch]["val/acc1"]


def shapes() -> Iterator[Entry]:
    """Question 1: entropy by block and epoch, bits, under the paper's range of the bins and each block's own.

    `u` counts runs whose curve is a U by `signature`, which takes the images' errors; `ever` counts runs and
    epochs up to this one, without those before training, and `ever_u` the U's among them. `lowest` is the
    lowest block of the mean curve over runs; `lowest_min` and `_max` are of single runs. `fall` and `rise`
    are `arms`.
    """
    for row in ("teacher_cait24", *students()):
        chosen: dict[tuple[str, int], list[tuple[Floats, bool]]] = {}
        for run in results().get(row, {}).values():
            for value_range, epoch, curve, u in _curves(run):
                chosen.setdefault((value_range, epoch), []).append((curve, u))
        ever: dict[str, list[bool]] = {}
        for (value_range, epoch), found in sorted(chosen.items()):
            if epoch:
                ever.setdefault(value_range, []).extend(u for _, u in found)
            curves = np.array([curve for curve, _ in found])
            falls, rises = zip(*map(arms, curves), strict=True)
            lowest = curves.argmin(axis=1) + 1
            entry: Entry = {"name": f"{row} {value_range} {epoch}", "row": row, "range": value_range}
            entry |= {"epoch": epoch, "runs": len(found), "u": sum(u for _, u in found)}
            entry |= {"ever": len(ever.get(value_range, [])), "ever_u": sum(ever.get(value_range, []))}
            entry |= {"lowest": curves.mean(axis=0).argmin() + 1}
            entry |= {"lowest_min": lowest.min(), "lowest_max": lowest.max()}
            entry |= interval(falls, "fall_") | interval(rises, "rise_")
            yield entry | _blocks(curves.mean(axis=0))


def _curves(run: Trained) -> Iterator[tuple[str, int, Floats, bool]]:
    """Range, epoch, curve, and whether it is a U."""
    for epoch, numbers in run.epochs.items():
        if "dynamics/student/signature/u_shaped" in numbers:
            yield "global", epoch, run.curve("entropy", epoch), run.said("u_shaped", epoch) == 1
    for epoch, (curve, u) in run.own_range.items():
        yield "layer", epoch, curve, u


def ranges() -> Iterator[Entry]:
    """Question 2: the entropy at the end under each range of the bins, bits.

    `fall` and `rise` are `arms`. Of a straight line in log2 magnitude over blocks, `r2` is the share of the
    curve's variance that it explains and `slope` its bits a doubling; two smooth curves correlate whatever
    their cause. Intervals are over seeds, a teacher's over images; `sd_` are over seeds too.
    """
    numbers: dict[str, Callable[[Floats, Floats], float]] = {
        "fall": lambda entropy, magnitude: arms(entropy)[0],
        "rise": lambda entropy, magnitude: arms(entropy)[1],
        "r2": lambda entropy, magnitude: stats.linregress(np.log2(magnitude), entropy).rvalue ** 2,
        "slope": lambda entropy, magnitude: stats.linregress(np.log2(magnitude), entropy).slope,
    }
    for row in (*TEACHERS, *students()):
        for value_range in get_args(RangeMode):
            files = [run.folder / "ranges" / f"{value_range}.npz" for run in results().get(row, {}).values()]
            found = [Profile.load(file) for file in files if file.exists()]
            if not found:
                continue
            entry: Entry = {"name": f"{row} {value_range}", "row": row, "range": value_range}
            entry["runs"] = len(found)
            for name, value in numbers.items():
                if row in TEACHERS:
                    entry |= over_images(found[0], value, f"{name}_")
                else:
                    entry |= interval((value(p.entropy, p.magnitude) for p in found), f"{name}_")
            curves = np.array([p.entropy for p in found])
            spread = curves.std(axis=0, ddof=1) if len(curves) > 1 else []
            yield entry | _blocks(curves.mean(axis=0)) | _blocks(spread, "sd")


def _blocks(values: Sequence[float] | Floats, what: str = "block") -> Entry:
    return {f"{what}_{block:02d}": value for block, value in enumerate(values, start=1)}


def ends() -> Iterator[Entry]:
    """Question 5: the first and the last block by epoch, minus the baseline's at that epoch.

    `first` and `last` are entropies, bits; `_scale` are log2 magnitudes. Bins span the range of a
    run at an epoch: bits of two runs or epochs differ also by it, and an end's scale moves its entropy.
    """
    quantities: dict[str, Callable[[int, Trained], float]] = {
        "first": lambda epoch, run: run.curve("entropy", epoch)[0],
        "last": lambda epoch, run: run.curve("entropy", epoch)[-1],
        "first_scale": lambda epoch, run: np.log2(run.curve("magnitude", epoch)[0]),
        "last_scale": lambda epoch, run: np.log2(run.curve("magnitude", epoch)[-1]),
    }
    for row, other in compared().items():
        for epoch in range(students()[row][0].last + 1):
            entry: Entry = {"name": f"{row} {epoch}", "row": row, "epoch": epoch}
            for name, of in quantities.items():
                entry |= interval(combined({row: 1, other: -1}, partial(of, epoch)), f"{name}_difference_")
            yield entry


def evolution() -> Iterator[Entry]:
    """Question 5: what the paper's Section 5 says of aligned students, bits; of rows as long as SoftKD.

    Minus the baseline's: `last` and `all`, the last block's entropy and the mean over blocks over the epochs
    of `BEGINNING`, `last_own`, the last block's there with bins of its own range, and `last_early`, over
    those of `PAPERS_BEGINNING`. `last_change` and `first_change` are of a run itself, from `BEGINNING` to the
    end, and `first_change_difference` what that is minus the baseline's. The last entry has late alignment
    minus early. The caution of `ends` holds.
    """
    for row, found in students().items():
        if "softkd" not in results() or found[0].last != results()["softkd"][0].last:
            continue
        entry: Entry = {"name": row}
        for name, block in (("last", -1), ("first", 0)):
            entry |= interval(map(partial(_change, block), found), f"{name}_change_")
        if other := compared().get(row):
            weights = {row: 1, other: -1}
            entry |= interval(combined(weights, partial(_change, 0)), "first_change_difference_")
            entry |= _beginnings(weights)
        yield entry
    late_minus_early = {"spectralkd_l1": 1, "spectralkd_f1": -1}
    if late_minus_early.keys() <= results().keys():
        yield {"name": "SpectralKD L 1 minus F 1"} | _beginnings(late_minus_early)


def _beginnings(weights: dict[str, int]) -> Entry:
    entry = interval(combined(weights, partial(_mean, BEGINNING, -1)), "last_")
    entry |= interval(combined(weights, partial(_mean, BEGINNING, slice(None))), "all_")
    entry |= interval(combined(weights, partial(_mean, PAPERS_BEGINNING, -1)), "last_early_")
    if all(run.own_range for row in weights for run in students()[row]):
        entry |= interval(combined(weights, _own), "last_own_")
    return entry


def _mean(epochs: Sequence[int], block: int | slice, run: Trained) -> float:
    return float(np.mean([run.curve("entropy", epoch)[block] for epoch in epochs]))


def _own(run: Trained) -> float:
    return float(np.mean([run.own_range[epoch][0][-1] for epoch in BEGINNING]))


def _change(block: int, run: Trained) -> float:
    return float(run.curve("entropy", run.last)[block]) - _mean(BEGINNING, block, run)


def conflicts() -> Iterator[Entry]:
    """Question 5: cosine between a term's gradient and the rest of the loss's.

    By epoch, and over all epochs above 0 in the entry named by its row alone: `cosine` over the blocks that
    the term reaches, `last` at the last block. All seeds have the same 32 images, which no interval covers.
    """
    for row, found in students().items():
        # [seeds, E, L]
        cosines = np.array([[run.conflict(epoch) for epoch in range(run.last + 1)] for run in found])
        reached = np.isfinite(cosines).all(axis=(0, 1))
        if not reached.any():
            continue
        spans = {"": slice(1, None)}
        spans |= {f" {epoch}": slice(epoch, epoch + 1) for epoch in range(cosines.shape[1])}
        for name, epochs in spans.items():
            over = cosines[:, epochs].mean(axis=1)  # [S, L]
            entry: Entry = {"name": f"{row}{name}", "row": row, "epoch": name.strip()}
            entry |= interval(over[:, reached].mean(axis=1), "cosine_")
            if reached[-1]:
                entry |= interval(over[:, -1], "last_")
            yield entry | _blocks(over.mean(axis=0))


def spectra() -> Iterator[Entry]:
    """Question 6: channel spectra before training and at the end, by `spectrum_signature`."""
    names = [
        f"{what}_{where}" for what in ("flatness", "low", "high") for where in ("early", "middle", "late")
    ]
    for row in (*TEACHERS, "softkd", "spectralkd_l1", "softkd_resnet", "spectralkd_l1_resnet"):
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
    the mean over blocks, the bins move, since more images have a wider range. `left` is the first block's
    height above the lowest.
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
                entry |= {"blocks": len(curve), "covered": int(((low <= most) & (most <= high)).sum())}
                entry |= {"lowest": float(said["nadir"]), "lowest_se": float(said["nadir_se"])}
                yield entry | {"left": float(said["depth_left"]), "u": float(said["u_shaped"])}


def early() -> Iterator[Entry]:
    """Question 8: does a number known early rank the rows as their final top-1 does?

    Spearman's correlation over rows of one teacher and of twelve epochs: a seed's early numbers with the mean
    final top-1 of the other seeds, so that a run's luck is not on both sides; mean over the seeds that all
    rows have. The interval is a bootstrap's over rows, p two-sided and from permutations of the rows: both
    take them for independent (they are families); `q` is corrected for all that were tried early. The final
    top-1 itself, in the last entry, says how high a correlation can be.
    """
    chosen = [
        row
        for row, (run, *_) in students().items()
        if row == "softkd" or (run.terms and ROWS[row].baseline == "softkd" and ROWS[row].teacher == "cait24")
    ]
    seeds = sorted(set.intersection(*(set(results()[row]) for row in chosen))) if chosen else []
    if len(chosen) < 4 or len(seeds) < 2:
        return
    table = [[results()[row][seed] for row in chosen] for seed in seeds]
    final = np.array([[last_top1(run) for run in line] for line in table])  # [S, rows]
    others = np.array([np.delete(final, i, axis=0).mean(axis=0) for i in range(len(seeds))])

    def entry_of(name: str, epoch: int, known: Floats) -> Entry:
        def of(rows: NDArray[np.int64]) -> float:
            return rank_correlation(known[:, rows], others[:, rows], permutations=0)[0]

        _, p = rank_correlation(known, others)
        entry = {"name": f"{name} {epoch}", "number": name, "epoch": epoch, "rows": len(chosen)}
        return entry | {"seeds": len(seeds)} | bootstrap(of, len(chosen), "rho_") | {"p": p}

    found = [
        entry_of(name, epoch, np.array([[value(run, epoch) for run in line] for line in table]))
        for epoch in EARLY
        for name, value in EARLY_NUMBERS.items()
    ]
    q = stats.false_discovery_control([entry["p"] for entry in found])
    yield from (entry | {"q": corrected} for entry, corrected in zip(found, q, strict=True))
    yield entry_of("top-1", table[0][0].last, final)


EARLY_NUMBERS: dict[str, Callable[[Trained, int], float]] = {
    "top-1": lambda run, epoch: run.epochs[epoch]["val/acc1"],
    "test loss": lambda run, epoch: run.epochs[epoch]["val/loss"],
    "last block's entropy": lambda run, epoch: run.curve("entropy", epoch)[-1],
    "first block's entropy": lambda run, epoch: run.curve("entropy", epoch)[0],
    "last block's magnitude": lambda run, epoch: run.curve("magnitude", epoch)[-1],
    "fall": lambda run, epoch: arms(run.curve("entropy", epoch))[0],
    "rise": lambda run, epoch: arms(run.curve("entropy", epoch))[1],
    "late flatness": lambda run, epoch: run.said("flatness_late", epoch),
    "late high frequencies": lambda run, epoch: run.said("high_late", epoch),
    "gap to the teacher's entropy": lambda run, epoch: run.epochs[epoch]["dynamics/gap/entropy_distance"],
    "gap to that curve's shape": lambda run, epoch: run.epochs[epoch]["dynamics/gap/entropy_shape_distance"],
    "gap to the teacher's magnitude": lambda run, epoch: run.epochs[epoch]["dynamics/gap/magnitude_distance"],
}


TABLES_MADE = (
    setup,
    runs,
    accuracy,
    saving,
    contrasts,
    courses,
    shapes,
    ranges,
    ends,
    evolution,
    conflicts,
    spectra,
    images,
    early,
    real_vit,
)


def write(folder: Path, name: str, entries: Sequence[Entry]) -> None:
    """One CSV; numbers to six significant digits, which are the same on another machine."""
    columns = list(dict.fromkeys(column for entry in entries for column in entry))
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        for entry in entries:
            writer.writerow({column: _cell(value) for column, value in entry.items()})


def _cell(value: object) -> object:
    if isinstance(value, float):
        return f"{value:.6g}" if math.isfinite(value) else ""
    return value


def main() -> None:
    """Make them all."""
    for table in TABLES_MADE:
        entries = list(table())
        write(TABLES, table.__name__, entries)
        print(f"{table.__name__}: {len(entries)} entries")


if __name__ == "__main__":
    main()
