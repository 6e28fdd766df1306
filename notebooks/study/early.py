"""The table of what one can know early: which numbers of the first epochs rank the rows as they end."""

from collections.abc import Callable, Iterator

import numpy as np
from evidence import (
    Entry,
    Floats,
    Trained,
    arms,
    bootstrap,
    last_top1,
    permutation_p,
    rank_correlation,
    results,
    students,
)
from numpy.typing import NDArray
from rows import ROWS
from scipy import stats

EARLY = (1, 2, 3, 4, 6)
"""Epochs of twelve; the first two are at the warm-up's rate."""


def early() -> Iterator[Entry]:
    """Question 8: does a number known early rank the rows as their final top-1 does?

    Spearman's correlation over rows of one teacher and of twelve epochs: a seed's early numbers with the mean
    final top-1 of the other seeds, so that a run's luck is not on both sides; mean over the seeds that all
    rows have. The interval is a bootstrap's over rows, p two-sided and from permutations of the rows: both
    take them for independent (they are families); `q` is corrected for all that were tried early. `rows_rho`
    is the correlation of the rows' means over all seeds, early and final, so that luck is on both sides. The
    last entries have the fall, the rise and the top-1 of the end itself.
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

    ends = [np.mean([last_top1(run) for run in results()[row].values()]) for row in chosen]

    def entry_of(name: str, epoch: int, value: Callable[[Trained], float]) -> Entry:
        known = np.array([[value(run) for run in line] for line in table])

        def of(rows: NDArray[np.int64], axis: int = -1) -> Floats:
            return rank_correlation(known[:, rows], others[:, rows])

        means = [np.mean([value(run) for run in results()[row].values()]) for row in chosen]
        entry: Entry = {"name": f"{name} {epoch}", "number": name, "epoch": epoch, "rows": len(chosen)}
        entry["tried"] = len(EARLY_NUMBERS)
        entry |= {"seeds": len(seeds)} | bootstrap(of, len(chosen), "rho_", vectorized=True)
        entry["p"] = permutation_p(known, others)
        return entry | {"rows_rho": stats.spearmanr(means, ends).statistic}

    found = [
        entry_of(name, epoch, lambda run, epoch=epoch, value=value: value(run, epoch))
        for epoch in EARLY
        for name, value in EARLY_NUMBERS.items()
    ]
    q = stats.false_discovery_control([entry["p"] for entry in found])
    yield from (entry | {"q": corrected} for entry, corrected in zip(found, q, strict=True))
    end = table[0][0].last
    for name in ("fall", "rise"):
        yield entry_of(name, end, lambda run, name=name: EARLY_NUMBERS[name](run, end))
    yield entry_of("top-1", end, last_top1)


EARLY_NUMBERS: dict[str, Callable[[Trained, int], float]] = {
    "top-1": lambda run, epoch: run.epochs[epoch]["val/acc1"],
    "test loss": lambda run, epoch: run.epochs[epoch]["val/loss"],
    "training loss to the teacher": lambda run, epoch: run.epochs[epoch]["train/loss_kd"],
    "training loss to the labels": lambda run, epoch: run.epochs[epoch]["train/loss_ce"],
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
