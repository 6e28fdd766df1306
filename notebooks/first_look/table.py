"""The table of the first look in configs/methods/README.md, from the runs' metrics.csv.

python notebooks/first_look/table.py runs/first_look
"""

import csv
import sys
from pathlib import Path
from statistics import fmean, stdev

from scipy import stats

from distill_dynamics.text import signed

METHODS = {
    "softkd": "SoftKD",
    "spectralkd_l1": "SpectralKD, last block",
    "pca_target": "PCATarget, last block",
    "pca_target_random": "the same, random directions",
}
SEEDS = range(3)


def column(folder: Path, method: str, name: str) -> list[list[float]]:
    """[seeds][epochs]: a metric of each epoch that has it."""
    values = []
    for seed in SEEDS:
        with (folder / f"{method}-{seed}" / "metrics.csv").open(newline="") as file:
            values.append([float(row[name]) for row in csv.DictReader(file) if row[name]])
    return values


def main(folder: Path) -> None:
    """Print it."""
    print("| method | top-1, last epoch | minus SoftKD's (95 %) | seconds an epoch ÷ SoftKD's | its loss |")
    print("|---|---|---|---|---|")
    top1 = {m: [seed[-1] for seed in column(folder, m, "val/acc1")] for m in METHODS}
    speeds = {m: column(folder, m, "train/images_per_s") for m in METHODS}
    seconds = {m: fmean(1 / rate for seed in of for rate in seed) for m, of in speeds.items()}  # an image
    terms = {"softkd": "kd", "spectralkd_l1": "spectral", "pca_target": "pca", "pca_target_random": "random"}
    for method, label in METHODS.items():
        difference = ""
        if method != "softkd":
            test = stats.ttest_rel(top1[method], top1["softkd"])
            low, high = test.confidence_interval(0.95)
            gain = fmean(top1[method]) - fmean(top1["softkd"])
            difference = f"{signed(gain)} ({signed(low)} to {signed(high)})"
        loss = fmean(seed[-1] for seed in column(folder, method, f"train/loss_{terms[method]}"))
        accuracy = f"{fmean(top1[method]):.2f} ± {stdev(top1[method]):.2f}"
        cost = f"{seconds[method] / seconds['softkd']:.2f}"
        print(f"| {label} | {accuracy} | {difference} | {cost} | {loss:.3f} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
