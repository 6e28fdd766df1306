"""Small run directories, folders of `analyze` and published CSVs, made by hand."""

import csv
import json

import numpy as np

from distill_dynamics.dynamics import Profile

STARTS = [
    {
        "from_epoch": 0,
        "seed": 7,
        "data": {"name": "CIFAR10", "fingerprint": "38f1c0de"},
        "devices": "2 x cuda",
        "command": "distill_dynamics fit --config <b>.yaml",
        "commit": "c1f024bb",
        "versions": {"torch": "2.14.1"},
        "ended": {"epoch": 3, "error": None},
    }
]
METRICS = [
    {"epoch": 0, "step": 0, "teacher/acc1": 90.456, "teacher/acc5": 99.5},
    {"epoch": 1, "step": 5, "train/loss": 1.5, "train/loss_ce": 2.25, "val/acc1": 70.125, "val/acc5": 95.0},
    {"epoch": 2, "step": 10, "train/loss": 1.25, "train/loss_ce": 2.0, "val/acc1": 84.5, "val/acc5": 97.25},
    {"epoch": 3, "step": 15, "train/loss": 1.0, "train/loss_ce": 1.5, "val/acc1": 83.25, "val/acc5": 98.0},
]
CONFIG = "seed_everything: 7\ntrainer: {max_epochs: 3}\n"
FALLING, U = np.array([4.4, 4.3, 4.2, 4.1]), np.array([4.4, 4.3, 4.0, 4.25])
TEACHER = np.array([4.5, 4.1, 4.2, 4.3, 4.4, 4.45])


def profile(epoch, entropy, images=4, model="deit", dead=False, mode="global", probe_id="made"):
    """Images that differ by less than 0.01 bits: every bend of `entropy` is far above the noise."""
    layers, wobble = len(entropy), np.random.default_rng(0).uniform(-0.005, 0.005, (images, len(entropy)))
    fields = {
        "entropy": entropy,
        "entropy_images": entropy + wobble - wobble.mean(0),
        "magnitude": np.arange(1.0, layers + 1),
        "magnitude_images": np.ones((images, layers)),
        "peak_images": np.full((images, layers), 5.0),
        "median_images": np.ones((images, layers)),
        "peak_channel": np.zeros(layers, int),
        "spectrum": [np.zeros(8) if dead else np.linspace(0.2, 0.1, 8)] * layers,
        "spectrum_se": [np.full(8, 0.01)] * layers,
        "value_range": np.tile([-4.0, 4.0], (layers, 1)),
        "clipped": np.zeros(layers),
        "range_mode": mode,
    }
    names = [f"blocks.{i}" for i in range(layers)]
    return Profile(model=model, epoch=epoch, layers=names, bins=100, probe_id=probe_id, **fields)


def profiles(shift=0.0, **changed):
    """A run's Profiles by file name; `shift` moves its students' curves up."""
    return {
        "teacher": profile(None, TEACHER, model="cait", **changed),
        "student_epoch_0000": profile(0, FALLING + shift, **changed),
        "student_epoch_0003": profile(3, U + shift, **changed),
        "student_best": profile(2, U + 0.02 + shift, **changed),
    }


def write_run(folder, metrics=METRICS, starts=STARTS, config=CONFIG, **profiles):
    (folder / "dynamics").mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"id": "abc", "starts": starts}))
    if metrics:
        with (folder / "metrics.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(name for row in metrics for name in row)))
            writer.writeheader()
            writer.writerows(metrics)
    if config:
        (folder / "config.yaml").write_text(config)
    for name, content in profiles.items():
        content.save(folder / "dynamics" / f"{name}.npz")
    return folder


def write_analysis(folder, **ranges):
    """A folder of `analyze`: range → label → Profile."""
    curves = []
    for value_range, models in ranges.items():
        for label, content in models.items():
            path = f"profiles/{label}/{value_range}/model.npz"
            content.save(folder / path)
            curves.append(
                {"label": label, "range": value_range, "epoch": None, "best": False, "profile": path}
            )
    (folder / "analysis.json").write_text(json.dumps({"schema": 1, "command": "analyze", "curves": curves}))
    return folder


def write_published(path, curves):
    """A published CSV: epoch (None: the best) → entropy of each layer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    depth = len(next(iter(curves.values())))
    lines = [",".join(["Model/Epoch", *(f"Layer_{n}" for n in range(1, depth + 1))])]
    for epoch, entropy in curves.items():
        name = "model_best" if epoch is None else f"checkpoint_epoch_{epoch}"
        lines.append(",".join([name, *map(repr, map(float, entropy))]))
    path.write_text("\n".join(lines) + "\n")
    return path
