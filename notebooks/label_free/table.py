"""The table of configs/label_free/README.md, from the runs' metrics.csv; beside them pixels as features.

python notebooks/label_free/table.py runs/label_free
"""

import csv
import sys
from pathlib import Path
from statistics import fmean, stdev

import torch
from scipy import stats

from distill_dynamics.data.fashion_mnist import find_files, read_split
from distill_dynamics.dynamics.measures.feature_quality import feature_quality, halves

SEEDS = range(3)
MEASURES = {"knn1": "kNN", "linear1": "linear"}


def column(folder: Path, seed: int, name: str) -> list[float]:
    """A metric at each epoch that has it, in their order."""
    with (folder / f"seed{seed}" / "metrics.csv").open(newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row[name]]


def of_pixels() -> dict[str, float]:
    """What kNN and regression make of the test images' grey levels alone, in the runs' halves."""
    folder = find_files(Path("data"))
    if folder is None:
        raise SystemExit("Fashion-MNIST is not in data/")
    pixels, labels = map(torch.tensor, read_split(folder, "val"))
    bank, x = halves(labels.long()), pixels.flatten(1).double()
    return feature_quality(x[bank], labels.long()[bank], x[~bank], labels.long()[~bank])


def main(folder: Path) -> None:
    """Print it."""
    print("| top-1 (%) | pixels | teacher | untrained student | trained | gain (95 %) | minus teacher |")
    print("|---|---|---|---|---|---|---|")
    pixels = of_pixels()
    for measure, label in MEASURES.items():
        teacher = column(folder, 0, f"teacher/{measure}")[0]
        epochs = [column(folder, seed, f"val/{measure}") for seed in SEEDS]
        first, last = [of[0] for of in epochs], [of[-1] for of in epochs]
        low, high = stats.ttest_rel(last, first).confidence_interval(0.95)
        gain = f"{fmean(last) - fmean(first):+.2f} ({low:+.2f} to {high:+.2f})"
        students = " | ".join(f"{fmean(of):.2f} ± {stdev(of):.2f}" for of in (first, last))
        models = f"{pixels[measure]:.2f} | {teacher:.2f} | {students}"
        print(f"| {label} | {models} | {gain} | {fmean(last) - teacher:+.2f} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
