"""The study's numbers: from results/, a CSV a question in tables/, which figures and sentences are made of.

python notebooks/study/tables.py
"""

import csv
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from evidence import (
    TEACHERS,
    Entry,
    Floats,
    Trained,
    best_top1,
    combined,
    compared,
    images_per_s,
    interval,
    last_top1,
    q_values,
    rank_correlation,
    read,
    results,
    students,
    versus,
)
from scipy import stats

from distill_dynamics import Backbone

TABLES = Path(__file__).parent / "tables"

CONTRASTS: dict[str, dict[str, int]] = {
    "late less early": {"spectralkd_l1": 1, "spectralkd_f1": -1},
    "half the weight less the whole": {"spectralkd_l1_beta01": 1, "spectralkd_l1": -1},
    "late alignment's cost, longer less shorter": {
        "spectralkd_l1_long": 1,
        "softkd_long": -1,
        "spectralkd_l1": -1,
        "softkd": 1,
    },
    "late alignment's cost, 60 epochs less shorter": {
        "spectralkd_l1_60": 1,
        "softkd_60": -1,
        "spectralkd_l1": -1,
        "softkd": 1,
    },
    "frozen projector less trained": {"projectorkd_l1_frozen": 1, "projectorkd_l1": -1},
    "late alignment's cost, ResNet less CaiT": {
        "spectralkd_l1_resnet": 1,
        "softkd_resnet": -1,
        "spectralkd_l1": -1,
        "softkd": 1,
    },
}
"""Sums of rows, seed by seed, beside each row's difference from its baseline."""
EARLY = (1, 3)
"""Epochs of twelve at which the dynamics might tell how a row will end; the first has the warm-up's rate."""


def setup() -> Iterator[Entry]:
    """What the runs were given, from their own config.yaml; parameters are counted."""
    values: dict[str, float] = {"runs": sum(map(len, students().values()))}
    models = {"softkd": "student", "teacher_cait24": "CaiT", "teacher_resnet": "ResNet", "softkd_long": ""}
    for row, model in models.items():
        if row not in results():
            continue
        config = results()[row][0].config
        values[f"{row} epochs"] = config["trainer"]["max_epochs"]
        if row == "softkd":
            values["batch"] = config["data"]["init_args"]["batch_size"]
            values["views"] = config["data"]["init_args"]["views"]
            values["alpha"] = config["model"]["alpha"]
            values["probe images"] = config["probe"]["n_images"]
        if model:
            made = config["model"]["student"]["init_args"]
            kwargs = made["timm_kwargs"]
            parameters = Backbone(made["name"], timm_kwargs=kwargs).parameters()
            values[f"{model} parameters"] = sum(p.numel() for p in parameters)
            values |= {f"{model} {what}": kwargs[what] for what in ("depth", "embed_dim") if what in kwargs}
    for name, value in values.items():
        yield {"name": name, "value": value}


def runs() -> Iterator[Entry]:
    """Every run: accuracies in percent; `term` is its feature term's share of the loss in the last epoch."""
    for row in [*TEACHERS, *students()]:
        for seed, run in results().get(row, {}).items():
            top1, end = run.top1(), run.epochs[run.last]
            entry = {
                "name": f"{row} {seed}",
                "epochs": run.last,
                "last": top1[-1],
                "best": top1.max(),
                "best_epoch": int(top1.argmax()) + 1,
                "val_loss": end["val/loss"],
                "images_per_s": images_per_s(run),
            }
            if "train/loss_kd" in end:
                alpha = run.config["model"]["alpha"]
                rest = (1 - alpha) * end["train/loss_ce"] + alpha * end["train/loss_kd"]
                entry["term"] = 1 - rest / end["train/loss"]
            yield entry


def accuracy() -> Iterator[Entry]:
    """Question 3: the paper's Table 1 in small. Top-1 in percent, differences from the baseline in points.

    `pairs` is the number of seeds in a difference; `q`, of the last epoch's, is corrected for the number of
    rows with a feature term.
    """
    differences = {
        row: combined({row: 1, other: -1}, last_top1)
        for row, other in compared().items()
        if row.startswith(("spectralkd", "projectorkd"))
    }
    q = q_values(differences)
    for row, found in students().items():
        entry: Entry = {"name": row, "epochs": found[0].last, "seeds": len(found)}
        for what, value in (("last", last_top1), ("best", best_top1)):
            values = [value(run) for run in found]
            entry[f"{what}_mean"] = np.mean(values)
            entry[f"{what}_sd"] = np.std(values, ddof=1) if len(values) > 1 else math.nan
            if other := compared().get(row):
                entry |= {"baseline": other, "pairs": len(combined({row: 1, other: -1}, value))}
                entry |= versus(row, other, value, f"{what}_difference_")
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
    """Questions 3, 4 and 6: `CONTRASTS`, in points of top-1; `q` is corrected for their number."""
    made = {name: weights for name, weights in CONTRASTS.items() if weights.keys() <= results().keys()}
    q = q_values({name: combined(weights, last_top1) for name, weights in made.items()})
    for name, weights in made.items():
        values = combined(weights, last_top1)
        best = interval(combined(weights, best_top1), "best_")
        yield {"name": name, "seeds": len(values), **interval(values, "last_"), **best} | (
            {"q": q[name]} if name in q else {}
        )


def shapes() -> Iterator[Entry]:
    """Questions 1, 2 and 5: entropy by block and epoch, under three ranges.

    "global" and "layer" are ranges of the bins; "scale-free" is the curve under the global range less log2 of
    each block's magnitude. `u` counts runs whose curve is a U by `signature`, which takes the images' errors
    and so is not known of the scale-free curve. `lowest` is the lowest block of the mean curve over runs,
    `fall` and `rise` the first and the last block's height above it; `lowest_min` and `_max` are of single
    runs. Of a straight line in log2 magnitude over blocks, `r2` is the share of the curve's variance that it
    explains and `slope` its bits a doubling; two smooth curves correlate whatever their cause.
    `span` is the largest magnitude over the smallest, in doublings.
    """
    for row in ("teacher_cait24", *students()):
        found = [list(_curves(run)) for run in results().get(row, {}).values()]
        chosen: dict[tuple[str, int], list[Entry]] = {}
        for curve in (curve for listed in found for curve in listed):
            chosen.setdefault((curve["range"], curve["epoch"]), []).append(curve)
        for (name, epoch), curves in sorted(chosen.items()):
            values = np.array([c["curve"] for c in curves])
            mean = values.mean(axis=0)
            nadir, nadirs = mean.argmin(), values.argmin(axis=1) + 1
            entry: Entry = {"name": f"{row} {name} {epoch}", "row": row, "range": name, "epoch": epoch}
            entry |= {"runs": len(curves)}
            if name != "scale-free":
                entry["u"] = sum(c["u"] for c in curves)
            entry |= {"lowest": nadir + 1, "lowest_min": nadirs.min(), "lowest_max": nadirs.max()}
            entry |= interval(values[:, 0] - values[:, nadir], "fall_")
            entry |= interval(values[:, -1] - values[:, nadir], "rise_")
            for what in ("r2", "slope", "span"):
                numbers = [c[what] for c in curves]
                entry |= {what: np.mean(numbers), f"{what}_min": min(numbers), f"{what}_max": max(numbers)}
            yield entry | _blocks(mean)


def _curves(run: Trained) -> Iterator[Entry]:
    """Each probed epoch's curve under each range that it was measured under."""
    for epoch, numbers in run.epochs.items():
        if "dynamics/student/signature/u_shaped" in numbers:
            u = run.said("u_shaped", epoch) == 1
            entropy, magnitude = run.curve("entropy", epoch), run.curve("magnitude", epoch)
            yield _curve("global", epoch, entropy, magnitude) | {"u": u}
            yield _curve("scale-free", epoch, entropy - np.log2(magnitude), magnitude)
    folder = run.folder / "evolution"
    if folder.exists():
        lines = [line for line in read(folder / "curves.csv") if line["range"] == "layer"]
        said = [line for line in read(folder / "table.csv") if line["range"] == "layer"]
        shapes = {line["epoch"]: line["u_shaped"] for line in said}
        for epoch, u in shapes.items():
            blocks = [line for line in lines if line["epoch"] == epoch]
            entropy, magnitude = (np.array([float(b[m]) for b in blocks]) for m in ("entropy", "magnitude"))
            yield _curve("layer", int(epoch), entropy, magnitude) | {"u": u == "1.0"}


def _curve(name: str, epoch: int, curve: Floats, magnitude: Floats) -> Entry:
    line = stats.linregress(np.log2(magnitude), curve)
    numbers = {"r2": line.rvalue**2, "slope": line.slope, "span": np.ptp(np.log2(magnitude))}
    return {"range": name, "epoch": epoch, "curve": curve, **numbers}


def _blocks(values: Floats) -> Entry:
    return {f"block_{block:02d}": value for block, value in enumerate(values, start=1)}


def ends() -> Iterator[Entry]:
    """Question 5: the first and the last block by epoch, beside the baseline's at that epoch.

    `first`, `last` and `all` are entropies, bits; `_scale` are log2 magnitudes. Bins span the range of a
    run at an epoch: bits of two runs or epochs differ also by it, and an end's scale moves its entropy.
    """
    quantities: dict[str, Callable[[Trained, int], float]] = {
        "first": lambda run, epoch: run.curve("entropy", epoch)[0],
        "last": lambda run, epoch: run.curve("entropy", epoch)[-1],
        "all": lambda run, epoch: run.curve("entropy", epoch).mean(),
        "first_scale": lambda run, epoch: np.log2(run.curve("magnitude", epoch)[0]),
        "last_scale": lambda run, epoch: np.log2(run.curve("magnitude", epoch)[-1]),
    }
    for row, found in students().items():
        other = compared().get(row)
        shared = results()[other][0].last if other else 0
        for epoch in range(found[0].last + 1):
            entry: Entry = {"name": f"{row} {epoch}", "row": row, "epoch": epoch}
            for name, of in quantities.items():

                def value(run: Trained, epoch: int = epoch, of: Callable = of) -> float:
                    return float(of(run, epoch))

                entry |= interval(map(value, found), f"{name}_")
                if other and epoch <= shared:
                    entry |= versus(row, other, value, f"{name}_difference_")
            yield entry


def evolution() -> Iterator[Entry]:
    """Question 5: the last block's entropy over the epochs, and the first's, bits.

    `rebound` is the last block's at the end less its lowest over epochs, which is never negative: only its
    difference from the baseline's says something. `change` is that at the end less that after epoch 1, and
    `first_change` the first block's. The caution of `ends` holds.
    """
    quantities = {"rebound": "last_rebound", "change": "last_change", "first_change": "first_change"}
    for row, found in students().items():
        entry: Entry = {"name": row, "seeds": len(found)}
        for name, logged in quantities.items():

            def value(run: Trained, logged: str = logged) -> float:
                return run.epochs[run.last][f"dynamics/evolution/{logged}"]

            entry |= interval(map(value, found), f"{name}_")
            if other := compared().get(row):
                entry |= versus(row, other, value, f"{name}_difference_")
        yield entry


def conflicts() -> Iterator[Entry]:
    """Question 5: cosine between a term's gradient and the rest of the loss's.

    By epoch, and over all epochs above 0 in the entry named by its row alone: `mean` over the blocks that the
    term reaches, `last` at the last block. All seeds have the same 32 images, which no interval covers.
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
            entry |= interval(over[:, reached].mean(axis=1))
            if reached[-1]:
                entry |= interval(over[:, -1], "last_")
            yield entry | _blocks(over.mean(axis=0))


def spectra() -> Iterator[Entry]:
    """Question 6: channel spectra before training and at the end, by `spectrum_signature`."""
    names = [
        f"{what}_{where}" for what in ("flatness", "low", "high") for where in ("early", "middle", "late")
    ]
    for row in (*TEACHERS, "none", "softkd", "softkd_resnet", "spectralkd_l1_resnet"):
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
    are. `level` is the mean over blocks, which moves with the bins: more images have a wider range.
    """
    folders = [
        run.folder / f"images_{count}"
        for row in [*TEACHERS, *students()]
        for run in results().get(row, {}).values()
        for count in sorted(int(path.name.removeprefix("images_")) for path in run.folder.glob("images_*"))
    ]
    for folder in folders:
        curve, (said,) = read(folder / "curves.csv"), read(folder / "table.csv")
        entropy, low, high = (
            np.array([float(block[f"entropy{bound}"]) for block in curve]) for bound in ("", "_low", "_high")
        )
        entry: Entry = {"name": f"{folder.parent.name} {said['images']}", "run": folder.parent.name}
        entry |= {"images": int(said["images"]), "width": np.median(high - low), "level": entropy.mean()}
        entry |= {"lowest": float(said["nadir"]), "lowest_se": float(said["nadir_se"])}
        for column in ("left", "left_low", "left_high", "right", "right_low", "right_high"):
            entry[column] = float(said[f"depth_{column}"])
        yield entry | {"u": said["u_shaped"]}


def early() -> Iterator[Entry]:
    """Question 8: does a number known early rank the rows as their final top-1 does?

    Spearman's correlation over rows of one teacher and of twelve epochs: a seed's early numbers with the mean
    final top-1 of the other seeds, so that a run's luck is not on both sides; mean over the seeds that all
    rows have. p is two-sided, from permutations of the rows, which takes them for independent (they are
    families); `q` is corrected for all that were tried.
    """
    of_another_kind = ("none", "softkd_online")
    chosen = [
        row
        for row in students()
        if row not in of_another_kind and not row.endswith(("resnet", "_long", "_60"))
    ]
    seeds = sorted(set.intersection(*(set(results()[row]) for row in chosen))) if chosen else []
    if len(chosen) < 4 or len(seeds) < 2:
        return
    table = [[results()[row][seed] for row in chosen] for seed in seeds]
    final = np.array([[last_top1(run) for run in line] for line in table])  # [S, rows]
    others = np.array([np.delete(final, i, axis=0).mean(axis=0) for i in range(len(seeds))])
    found = {}
    for epoch in EARLY:
        for name, value in EARLY_NUMBERS.items():
            known = np.array([[value(run, epoch) for run in line] for line in table])
            found[name, epoch] = rank_correlation(known, others)
    q = stats.false_discovery_control([p for _, p in found.values()])
    for ((name, epoch), (rho, p)), corrected in zip(found.items(), q, strict=True):
        entry: Entry = {"name": f"{name} {epoch}", "number": name, "epoch": epoch}
        yield entry | {"rows": len(chosen), "seeds": len(seeds), "rho": rho, "p": p, "q": corrected}


EARLY_NUMBERS: dict[str, Callable[[Trained, int], float]] = {
    "top-1": lambda run, epoch: run.epochs[epoch]["val/acc1"],
    "test loss": lambda run, epoch: run.epochs[epoch]["val/loss"],
    "last block's entropy": lambda run, epoch: run.curve("entropy", epoch)[-1],
    "first block's entropy": lambda run, epoch: run.curve("entropy", epoch)[0],
    "last block's magnitude": lambda run, epoch: run.curve("magnitude", epoch)[-1],
    "lowest block": lambda run, epoch: run.said("nadir", epoch),
    "rise after the lowest": lambda run, epoch: run.said("depth_right", epoch),
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
    shapes,
    ends,
    evolution,
    conflicts,
    spectra,
    images,
    early,
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
