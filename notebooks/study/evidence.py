"""What the runs left in results/, as numbers, and the statistics of their differences.

An interval (low, high) is a 95 % one, Student's t over seeds: where the mean over very many seeds lies, on
these test images and with these teachers. Differences are of runs of the same seed.
"""

import csv
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from rows import CONTROLS, ROWS, TEACHERS
from scipy import stats

from distill_dynamics.dynamics import Profile

RESULTS = Path(__file__).parent / "results"

Numbers = dict[str, float]
Entry = dict[str, Any]
"""A line of a table; its first column, `name`, is its own."""
Floats = NDArray[np.float64]


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

    @cached_property
    def config(self) -> dict[str, Any]:
        """Its config.yaml."""
        return yaml.safe_load((self.folder / "config.yaml").read_text())

    @property
    def terms(self) -> dict[str, Any]:
        """Feature terms of its loss, by name."""
        return self.config["model"].get("terms") or {}

    def top1(self) -> Floats:
        """[E]: accuracy on the test set after each epoch, percent."""
        return np.array([self.epochs[e]["val/acc1"] for e in sorted(self.epochs) if e])

    def curve(self, measure: str, epoch: int) -> Floats:
        """[L]: of the student."""
        found, pattern = self.epochs[epoch], re.compile(rf"dynamics/student/{measure}/block_\d+")
        return np.array([found[name] for name in sorted(filter(pattern.fullmatch, found))])

    @cached_property
    def own_range(self) -> dict[int, tuple[Floats, float]]:
        """Epoch → entropy [L] with bins of each block's own range, and its `u_depth`; of some rows."""
        folder = self.folder / "evolution"
        if not folder.exists():
            return {}
        depth = {line["epoch"]: u_depth(line) for line in read(folder / "table.csv")}
        curves: dict[str, list[float]] = {epoch: [] for epoch in depth}
        for line in read(folder / "curves.csv"):
            curves[line["epoch"]].append(float(line["entropy"]))
        return {int(epoch): (np.array(curve), depth[epoch]) for epoch, curve in curves.items()}

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


def u_depth(said: Mapping[str, Any], prefix: str = "") -> float:
    """The lower side's depth, bits, of a curve that was a U when it was recorded; 0 for any other.

    What was recorded before `signature` had a least depth may have any."""
    return float(said[f"{prefix}depth"]) if float(said[f"{prefix}u_shaped"]) == 1 else 0.0


@cache
def results() -> dict[str, dict[int, Trained]]:
    """Row → seed → run, as far as they have been made; teachers are rows of one seed."""
    found: dict[str, dict[int, Trained]] = {}
    for path in sorted(RESULTS.glob("[!.]*/metrics.csv")):  # .NAME is one that was not copied to its end
        name = path.parent.name
        row, seed = (name, "0") if name in TEACHERS | CONTROLS else name.rsplit("-", 1)
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
    """Runs of each row that has any, in the table's order."""
    return {row: list(results()[row].values()) for row in ROWS if row in results()}


def compared() -> dict[str, str]:
    """Rows and their baselines, where both were run."""
    pairs = {row: ROWS[row].baseline for row in students()}
    return {row: other for row, other in pairs.items() if other in results()}


def interval(values: Iterable[float], prefix: str) -> Entry:
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


def published(weights: Mapping[str, int]) -> float:
    """The same sum of the paper's figures; NaN where it has not all of them."""
    return round(sum(weight * (ROWS[row].paper or math.nan) for row, weight in weights.items()), 2)


def p_values(samples: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Of paired t-tests against 0; those of one seed are left out."""
    return {name: stats.ttest_1samp(sample, 0).pvalue for name, sample in samples.items() if len(sample) > 1}


def q_values(p: Mapping[str, float]) -> dict[str, float]:
    """Benjamini and Hochberg's: of those below 0.05 at most 5 % are expected to be no difference."""
    return dict(zip(p, stats.false_discovery_control(list(p.values())), strict=True)) if p else {}


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Corrected by Holm (1979): the chance of any false one is below it."""
    corrected, largest = {}, 0.0
    for i, name in enumerate(sorted(p, key=p.__getitem__)):
        largest = max(largest, min(1.0, (len(p) - i) * p[name]))
        corrected[name] = largest
    return corrected


def pooled(value: Callable[[Trained], float]) -> tuple[float, int]:
    """Standard deviation over seeds, pooled over all rows of students, and its degrees of freedom."""
    groups = [np.array([value(run) for run in found]) for found in students().values()]
    freedom = sum(len(group) - 1 for group in groups)
    return math.sqrt(sum(((group - group.mean()) ** 2).sum() for group in groups) / freedom), freedom


def known_to(value: Callable[[Trained], float], seeds: int) -> float:
    """Half the 95 % interval of the difference of two rows of so many seeds, from the pooled deviation."""
    deviation, freedom = pooled(value)
    return float(stats.t.ppf(0.975, freedom)) * deviation * math.sqrt(2 / seeds)


def arms(curve: Floats) -> tuple[float, float]:
    """First and last block's height above the middle third's mean: of a U, both are above 0.

    Fixed places, unlike heights above the lowest block, which cannot be below 0.
    """
    third = len(curve) // 3
    middle = curve[third : len(curve) - third].mean()
    return float(curve[0] - middle), float(curve[-1] - middle)


def by_block(values: Sequence[float] | Floats, what: str = "block") -> Entry:
    """Columns of a curve [L]."""
    return {f"{what}_{block:02d}": value for block, value in enumerate(values, start=1)}


OF_CURVES: dict[str, Callable[[Floats, Floats], float]] = {
    "fall": lambda entropy, magnitude: arms(entropy)[0],
    "rise": lambda entropy, magnitude: arms(entropy)[1],
    "r2": lambda entropy, magnitude: stats.linregress(np.log2(magnitude), entropy).rvalue ** 2,
    "slope": lambda entropy, magnitude: stats.linregress(np.log2(magnitude), entropy).slope,
}
"""Of a model's entropy and magnitude by block: `arms`, and a straight line in log2 magnitude."""


def over_images(profile: Profile, value: Callable[[Floats, Floats], float], prefix: str) -> Entry:
    """A number of one model's entropy and magnitude [L], and its 95 % bootstrap interval over images."""

    def of(rows: NDArray[np.int64]) -> float:
        return value(profile.entropy_images[rows].mean(axis=0), profile.magnitude_images[rows].mean(axis=0))

    return bootstrap(of, len(profile.entropy_images), prefix)


def bootstrap(of: Callable[..., Any], count: int, prefix: str, vectorized: bool = False) -> Entry:
    """A number of `count` things, given their indices, and its 95 % interval over resamples of them.

    Vectorized, `of` is given many resamples [R, count] at once, and by `axis` that they lie along the last.
    """
    everything = np.arange(count)
    drawn = stats.bootstrap(
        [everything],
        of,
        n_resamples=2000,
        vectorized=vectorized,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    low, high = drawn.confidence_interval
    return {f"{prefix}mean": of(everything), f"{prefix}low": low, f"{prefix}high": high}


def last_top1(run: Trained) -> float:
    """After the last epoch, percent: no epoch was chosen by the test set."""
    return float(run.top1()[-1])


def best_top1(run: Trained) -> float:
    """Of the best epoch on the test set, as the paper reports it, percent."""
    return float(run.top1().max())


def test_loss(run: Trained) -> float:
    """After the last epoch: cross-entropy on the test set, nats."""
    return run.epochs[run.last]["val/loss"]


def kd_loss(run: Trained) -> float:
    """Of the last epoch's training images: how far the student's answers are from its teacher's, nats."""
    return run.epochs[run.last].get("train/loss_kd", math.nan)


def term_share(run: Trained) -> float:
    """Of the feature terms in the loss of the last epoch; NaN without one."""
    end, alpha = run.epochs[run.last], run.config["model"]["alpha"]
    if not run.terms:
        return math.nan
    rest = (1 - alpha) * end["train/loss_ce"] + alpha * end["train/loss_kd"]
    return 1 - rest / end["train/loss"]


def images_per_s(run: Trained) -> float:
    """While training, without validation and probes; of the run's median epoch."""
    return float(np.median([numbers["train/images_per_s"] for e, numbers in run.epochs.items() if e]))


def training_hours(run: Trained) -> float:
    """In training steps."""
    batch = run.config["data"]["init_args"]["batch_size"]
    return run.epochs[run.last]["step"] * batch / images_per_s(run) / 3600


def _ranked(values: Floats) -> Floats:
    """Ranks along the last axis, centred and of length 1; 0 where all are alike."""
    if not np.isfinite(values).all():
        raise ValueError("a number that is not known cannot be ranked")
    ranks = stats.rankdata(values, axis=-1)
    centred = ranks - ranks.mean(axis=-1, keepdims=True)
    with np.errstate(invalid="ignore"):
        return np.nan_to_num(centred / np.linalg.norm(centred, axis=-1, keepdims=True))


def rank_correlation(known: Floats, final: Floats) -> Floats:
    """Spearman's of two [S, ..., n] over n, mean over S. `ValueError` for a value that is not finite."""
    return (_ranked(known) * _ranked(final)).sum(axis=-1).mean(axis=0)


def permutation_p(known: Floats, final: Floats, permutations: int = 20_000) -> float:
    """Two-sided p of the `rank_correlation` of two [S, n], from permutations of the columns."""
    products = _ranked(known).T @ _ranked(final) / len(known)  # [n, n]: a permutation picks one of each row
    rng = np.random.default_rng(0)
    orders = rng.permuted(np.tile(np.arange(len(products)), (permutations, 1)), axis=1)
    drawn = products[np.arange(len(products)), orders].sum(axis=1)
    return float((1 + (np.abs(drawn) >= abs(np.trace(products)) - 1e-12).sum()) / (1 + permutations))
