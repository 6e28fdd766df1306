"""Tables of the training: the ends of the network over the epochs, and gradients that pull apart."""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from evidence import (
    Entry,
    Floats,
    Trained,
    by_block,
    combined,
    compared,
    interval,
    results,
    students,
)
from scipy import stats

WARM_UP = 2
"""Epochs at a third of the rate, after which every run's magnitude jumps."""


def ends() -> Iterator[Entry]:
    """Question 5: the last block by epoch, and minus the baseline's at that epoch.

    `last` is its entropy, bits, `last_scale` log2 of its magnitude and `others_scale` the mean of that over
    all other blocks. Bins span the range of a run at an epoch: bits of two runs or epochs differ also by it,
    and a block's scale moves its entropy.
    """
    quantities: dict[str, Callable[[int, Trained], float]] = {
        "last": lambda epoch, run: run.curve("entropy", epoch)[-1],
        "last_scale": lambda epoch, run: np.log2(run.curve("magnitude", epoch)[-1]),
        "others_scale": lambda epoch, run: np.log2(run.curve("magnitude", epoch)[:-1]).mean(),
    }
    for row, found in students().items():
        other = compared().get(row)
        for epoch in range(found[0].last + 1):
            entry: Entry = {"name": f"{row} {epoch}", "row": row, "epoch": epoch}
            for name, of in quantities.items():
                entry |= interval((of(epoch, run) for run in found), f"{name}_")
            if other:
                difference = combined({row: 1, other: -1}, partial(quantities["last"], epoch))
                entry |= interval(difference, "last_difference_")
            yield entry


def early_epochs(last: int) -> range:
    """The paper's early epochs (its Section 5.2), of a training of so many, without those of the warm-up.

    A tenth to three tenths of the training: there 30 to 90 of 300.
    """
    return range(max(WARM_UP + 1, -(-last // 10)), 3 * last // 10 + 1)


def evolution() -> Iterator[Entry]:
    """Question 5: what the paper's Section 5 says of aligned students; entropies in bits, scales in log2.

    Over `early_epochs`, minus the baseline's: the last block's entropy `last` and its magnitude `last_scale`,
    its entropy with bins of its own range `last_own`, and the mean over blocks `all`. From the last of these
    epochs to the end, of a run itself: `last_change` and `first_change` of the ends' entropy,
    `last_scale_change` of the last block's magnitude, `others_scale_change` of the mean over all others;
    `_difference` is minus the baseline's. Over the epochs since the first of them, `r2` is of a straight
    line: the last block's entropy minus the mean of the others on the same of log2 magnitude. The last entry
    has late alignment minus early. The caution of `ends` holds.
    """
    for row, found in students().items():
        if not found[0].terms and row not in compared().values():
            continue
        span = early_epochs(found[0].last)
        entry: Entry = {"name": row, "epochs": found[0].last, "early_from": span[0], "early_to": span[-1]}
        for name, value in CHANGES.items():
            entry |= interval(map(value, found), f"{name}_")
        if other := compared().get(row):
            weights = {row: 1, other: -1}
            for name in ("last_change", "first_change"):
                entry |= interval(combined(weights, CHANGES[name]), f"{name}_difference_")
            entry |= _early(weights)
        yield entry
    late_minus_early = {"spectralkd_l1": 1, "spectralkd_f1": -1}
    if late_minus_early.keys() <= results().keys():
        yield {"name": "SpectralKD L 1 minus F 1"} | _early(late_minus_early)


def _early(weights: dict[str, int]) -> Entry:
    entry = interval(combined(weights, partial(_mean, "entropy", -1)), "last_")
    entry |= interval(combined(weights, partial(_mean, "magnitude", -1)), "last_scale_")
    entry |= interval(combined(weights, partial(_mean, "entropy", slice(None))), "all_")
    if all(run.own_range for row in weights for run in students()[row]):
        entry |= interval(combined(weights, _own), "last_own_")
    return entry


def _curve(measure: str, run: Trained, epoch: int) -> Floats:
    curve = run.curve(measure, epoch)
    return np.log2(curve) if measure == "magnitude" else curve


def _mean(measure: str, block: int | slice, run: Trained) -> float:
    return float(np.mean([_curve(measure, run, epoch)[block] for epoch in early_epochs(run.last)]))


def _own(run: Trained) -> float:
    return float(np.mean([run.own_range[epoch][0][-1] for epoch in early_epochs(run.last)]))


def _change(measure: str, block: int | slice, run: Trained) -> float:
    begin, end = (_curve(measure, run, epoch)[block] for epoch in (early_epochs(run.last)[-1], run.last))
    return float(np.mean(end - begin))


def _of_scale(run: Trained) -> float:
    """Of the last block beside the others, over the epochs: entropy as a straight line in log2 magnitude."""
    entropy, magnitude = (
        [
            curve[-1] - curve[:-1].mean()
            for epoch in range(early_epochs(run.last)[0], run.last + 1)
            for curve in [_curve(measure, run, epoch)]
        ]
        for measure in ("entropy", "magnitude")
    )
    return stats.linregress(magnitude, entropy).rvalue ** 2


CHANGES: dict[str, Callable[[Trained], float]] = {
    "last_change": partial(_change, "entropy", -1),
    "first_change": partial(_change, "entropy", 0),
    "last_scale_change": partial(_change, "magnitude", -1),
    "others_scale_change": partial(_change, "magnitude", slice(None, -1)),
    "r2": _of_scale,
}


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
            yield entry | by_block(over.mean(axis=0))
