"""The study's numbers: from results/, a CSV a question in tables/, which figures and sentences are made of.

    python notebooks/study/tables.py

An interval (low, high) is a 95 % one, Student's t over seeds: where the mean over very many seeds lies, on
these test images and with these teachers. Differences are of runs of the same seed.
"""

import csv
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from scipy import stats

from distill_dynamics import Backbone

HERE = Path(__file__).parent
RESULTS, TABLES = HERE / "results", HERE / "tables"

Numbers = dict[str, float]
Entry = dict[str, Any]
"""A line of a table; its first column, `name`, is its own."""
Floats = NDArray[np.float64]

TEACHERS = {"teacher_cait24": "teacher, CaiT", "teacher_resnet": "teacher, ResNet"}
ROWS = {
    "none": "no distillation",
    "softkd": "SoftKD",
    "softkd_online": "SoftKD, teacher online",
    "softkd_long": "SoftKD, longer",
    "spectralkd_f2_l6": "SpectralKD F 2, L 6",
    "spectralkd_f2_l1": "SpectralKD F 2, L 1",
    "spectralkd_f1_l1": "SpectralKD F 1, L 1",
    "spectralkd_f1": "SpectralKD F 1",
    "spectralkd_l1": "SpectralKD L 1",
    "spectralkd_l1_long": "SpectralKD L 1, longer",
    "spectralkd_l1_beta01": "SpectralKD L 1, half β",
    "spectralkd_l8": "SpectralKD L 8",
    "projectorkd_f1": "ProjectorKD F 1",
    "projectorkd_l1": "ProjectorKD L 1",
    "projectorkd_l1_frozen": "ProjectorKD L 1, frozen",
    "projectorkd_f1_l1": "ProjectorKD F 1, L 1",
    "softkd_resnet": "SoftKD, ResNet teacher",
    "spectralkd_l1_resnet": "SpectralKD L 1, ResNet teacher",
}
"""What a row is called, in the order of the paper's Table 1."""
BASELINES = {"spectralkd_l1_long": "softkd_long", "spectralkd_l1_resnet": "softkd_resnet"}
"""Rows that are compared with another than "softkd"."""
CONTRASTS: dict[str, dict[str, int]] = {
    "late less early": {"spectralkd_l1": 1, "spectralkd_f1": -1},
    "half the weight less the whole": {"spectralkd_l1_beta01": 1, "spectralkd_l1": -1},
    "late alignment's cost, longer less shorter": {
        "spectralkd_l1_long": 1,
        "softkd_long": -1,
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


# --- reading ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trained:
    """One finished run."""

    folder: Path
    epochs: dict[int, Numbers]
    """What metrics.csv has, by completed epochs."""

    @property
    def last(self) -> int:
        """Epochs it was trained for."""
        return max(self.epochs)

    @property
    def config(self) -> dict[str, Any]:
        """Its config.yaml."""
        return yaml.safe_load((self.folder / "config.yaml").read_text())

    def top1(self) -> Floats:
        """[E]: accuracy on the test set after each epoch, percent."""
        return np.array([self.epochs[e]["val/acc1"] for e in sorted(self.epochs) if e])

    def curve(self, measure: str, epoch: int) -> Floats:
        """[L]: of the student."""
        found, pattern = self.epochs[epoch], re.compile(rf"dynamics/student/{measure}/block_\d+")
        return np.array([found[name] for name in sorted(filter(pattern.fullmatch, found))])

    def conflict(self, epoch: int) -> Floats:
        """[L]: cosines of the run's one term; NaN at blocks that it does not reach."""
        cosines = np.full(len(self.curve("entropy", epoch)), np.nan)
        for name, value in self.epochs[epoch].items():
            if name.startswith("dynamics/conflict/"):
                cosines[int(name.rsplit("_", 1)[1]) - 1] = value
        return cosines

    def said(self, name: str, epoch: int | None = None) -> float:
        """A number of dynamics/student/signature, at the end if no epoch is given."""
        return self.epochs[self.last if epoch is None else epoch][f"dynamics/student/signature/{name}"]


@cache
def results() -> dict[str, dict[int, Trained]]:
    """Row → seed → run, as far as they have been made; teachers are rows of one seed."""
    found: dict[str, dict[int, Trained]] = {}
    for path in sorted(RESULTS.glob("*/metrics.csv")):
        name = path.parent.name
        row, seed = (name, "0") if name in TEACHERS else name.rsplit("-", 1)
        epochs: dict[int, Numbers] = {}
        for entry in read(path):
            given = {column: float(value) for column, value in entry.items() if value}
            epochs.setdefault(int(given["epoch"]), {}).update(given)
        found.setdefault(row, {})[int(seed)] = Trained(path.parent, epochs)
    return found


def read(path: Path) -> list[dict[str, str]]:
    """Entries of a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def students() -> dict[str, list[Trained]]:
    """Runs of each row that has any, in the order of `ROWS`."""
    return {row: list(results()[row].values()) for row in ROWS if row in results()}


def compared() -> dict[str, str]:
    """Rows and their baselines, where both were run."""
    pairs = {row: BASELINES.get(row, "softkd") for row in students()}
    return {row: other for row, other in pairs.items() if other != row and other in results()}


# --- statistics ---------------------------------------------------------------------------------------


def interval(values: Iterable[float], prefix: str = "") -> Entry:
    """Mean and 95 % interval; no interval for fewer than two values."""
    sample = np.array(list(values))
    mean, half = sample.mean(), math.nan
    if len(sample) > 1:
        half = stats.t.ppf(0.975, len(sample) - 1) * sample.std(ddof=1) / math.sqrt(len(sample))
    return {f"{prefix}mean": mean, f"{prefix}low": mean - half, f"{prefix}high": mean + half}


def combined(weights: Mapping[str, int], value: Callable[[Trained], float]) -> list[float]:
    """Σ weight · value over rows, for each seed that all of them have."""
    seeds = set.intersection(*(set(results()[row]) for row in weights))
    return [sum(w * value(results()[row][seed]) for row, w in weights.items()) for seed in sorted(seeds)]


def versus(row: str, other: str, value: Callable[[Trained], float], prefix: str) -> Entry:
    """`interval` of a row less another, seed by seed."""
    return interval(combined({row: 1, other: -1}, value), prefix)


def q_values(samples: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Of paired t-tests against 0, corrected for their number; those of one seed are left out.

    Benjamini and Hochberg's: of those below 0.05 at most 5 % are expected to be no difference.
    """
    p = {name: stats.ttest_1samp(sample, 0).pvalue for name, sample in samples.items() if len(sample) > 1}
    return dict(zip(p, stats.false_discovery_control(list(p.values())), strict=True)) if p else {}


def last_top1(run: Trained) -> float:
    """After the last epoch, percent: no epoch was chosen by the test set."""
    return float(run.top1()[-1])


def best_top1(run: Trained) -> float:
    """Of the best epoch on the test set, as the paper reports it, percent."""
    return float(run.top1().max())


def images_per_s(run: Trained) -> float:
    """While training, without validation and probes; of the run's median epoch."""
    return float(np.median([numbers["train/images_per_s"] for e, numbers in run.epochs.items() if e]))


# --- the tables ---------------------------------------------------------------------------------------


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
    folders = RESULTS.glob("*/images_*")
    for folder in sorted(
        folders, key=lambda path: (path.parent.name, int(path.name.removeprefix("images_")))
    ):
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
    longer_or_other = ("none", "softkd_online", "softkd_long", "spectralkd_l1_long")
    chosen = [row for row in students() if row not in longer_or_other and not row.endswith("resnet")]
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
    "the same of its shape": lambda run, epoch: run.epochs[epoch]["dynamics/gap/entropy_shape_distance"],
    "the same of magnitude": lambda run, epoch: run.epochs[epoch]["dynamics/gap/magnitude_distance"],
}


def rank_correlation(known: Floats, final: Floats, permutations: int = 20_000) -> tuple[float, float]:
    """Spearman's, mean over the lines of two [S, n], and its p from permutations of the columns."""

    def standardised(values: Floats) -> Floats:
        ranks = stats.rankdata(values, axis=1)
        centred = ranks - ranks.mean(axis=1, keepdims=True)
        with np.errstate(invalid="ignore"):
            return np.nan_to_num(centred / np.linalg.norm(centred, axis=1, keepdims=True))  # all alike: 0

    one, other = standardised(known), standardised(final)
    products = one.T @ other / len(one)  # [n, n]: Σ over lines; a permutation picks one of each row
    rng = np.random.default_rng(0)
    orders = rng.permuted(np.tile(np.arange(len(products)), (permutations, 1)), axis=1)
    drawn = products[np.arange(len(products)), orders].sum(axis=1)
    rho = float(np.trace(products))
    return rho, float((1 + (np.abs(drawn) >= abs(rho) - 1e-12).sum()) / (1 + permutations))


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
