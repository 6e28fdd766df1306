"""Tables of what was trained and how well it did: setup, runs, accuracy, contrasts, courses."""

import math
from collections.abc import Iterator
from functools import partial

import numpy as np
from evidence import (
    RESULTS,
    Entry,
    Trained,
    best_top1,
    combined,
    compared,
    holm,
    images_per_s,
    interval,
    kd_loss,
    known_to,
    last_top1,
    p_values,
    pooled,
    published,
    q_values,
    results,
    students,
    term_share,
    test_loss,
    training_hours,
)
from rows import CONTROLS, ROWS, TEACHERS

from distill_dynamics import Backbone
from distill_dynamics.dynamics import Profile
from distill_dynamics.dynamics.signature import LEAST_DEPTH

LENGTHS = ("spectralkd_l1", "spectralkd_l1_long", "spectralkd_l1_60")
"""The same row in trainings of three lengths."""

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
    "SpectralKD L 1, 12 epochs, minus SoftKD, 20": {"spectralkd_l1": 1, "softkd_long": -1},
    "SpectralKD L 1, ResNet minus CaiT": {"spectralkd_l1_resnet": 1, "spectralkd_l1": -1},
    "gain of L 1, ResNet minus CaiT": {
        "spectralkd_l1_resnet": 1,
        "softkd_resnet": -1,
        "spectralkd_l1": -1,
        "softkd": 1,
    },
}
"""Sums of rows, seed by seed, beside each row's difference from its baseline."""


def setup() -> Iterator[Entry]:
    """What the runs were given, from their own config.yaml; parameters are counted.

    `hours` are of a core, in training steps alone: of all runs, teachers too. `spread` is `pooled` of the
    last epoch's top-1, points, and `known` is `known_to`; `loss spread` is of the test loss.
    """
    values: dict[str, float] = {"runs": sum(map(len, students().values()))}
    values["least depth"] = LEAST_DEPTH
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
            values["labels"] = 1 - values["alpha"]
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
    if (profile := RESULTS / "teacher_cait24" / "ranges" / "global.npz").exists():
        values["CaiT last scale"] = math.log2(Profile.load(profile).magnitude[-1])
    if any(len(found) > 1 for found in students().values()):
        values["spread"], _ = pooled(last_top1)
        values["loss spread"], _ = pooled(test_loss)
        for seeds in (3, 5):
            values[f"known {seeds}"] = known_to(last_top1, seeds)
    for name, value in values.items():
        yield {"name": name, "value": value}


def runs() -> Iterator[Entry]:
    """Every run: accuracies in percent; `term` is its feature term's share of the loss in the last epoch."""
    for row in [*TEACHERS, *CONTROLS, *students()]:
        for seed, run in results().get(row, {}).items():
            top1, end = run.top1(), run.epochs[run.last]
            yield {
                "name": f"{row} {seed}",
                "epochs": run.last,
                "last": top1[-1],
                "best": top1.max(),
                "best_epoch": int(top1.argmax()) + 1,
                "val_loss": end["val/loss"],
                "kd_loss": kd_loss(run),
                "images_per_s": images_per_s(run),
                "term": term_share(run),
            }


def accuracy() -> Iterator[Entry]:
    """Question 3: the paper's Table 1 in small. Top-1 in percent, differences from the baseline in points.

    Of the last epoch, `best` of the best on the test set, as the paper has it. `term` is the feature term's
    share of the loss, percent, `paper` the paper's difference, `pairs` the number of seeds in a difference.
    `sure`: whether a difference is larger than `known_to`, by the deviation pooled over all rows; `q`
    (Benjamini and Hochberg) and `holm` are corrected for the number of rows with a feature term. `loss` is
    the test loss, nats; `kd` is how far the training loss to the teacher is from the baseline's, percent.
    """
    terms = [row for row in compared() if results()[row][0].terms]
    p = p_values({row: combined({row: 1, compared()[row]: -1}, last_top1) for row in terms})
    q, corrected = q_values(p), holm(p)
    for row, found in students().items():
        entry: Entry = {"name": row, "epochs": found[0].last, "seeds": len(found)}
        entry["term"] = 100 * np.mean([term_share(run) for run in found])
        for what, value in {"last": last_top1, "best": best_top1, "loss": test_loss}.items():
            values = [value(run) for run in found]
            entry[f"{what}_mean"] = np.mean(values)
            entry[f"{what}_sd"] = np.std(values, ddof=1) if len(values) > 1 else math.nan
            if other := compared().get(row):
                pairs = combined({row: 1, other: -1}, value)
                entry |= interval(pairs, f"{what}_difference_")
                entry[f"{what}_sure"] = int(abs(np.mean(pairs)) > known_to(value, len(pairs)))
        if other := compared().get(row):
            entry |= {"baseline": other, "pairs": len(combined({row: 1, other: -1}, last_top1))}
            entry |= {"paper": published({row: 1, other: -1})}
            seeds = sorted(set(results()[row]) & set(results()[other]))
            ratios = [100 * (kd_loss(results()[row][s]) / kd_loss(results()[other][s]) - 1) for s in seeds]
            if ROWS[row].teacher == ROWS[other].teacher and np.isfinite(ratios).all():
                entry |= interval(ratios, "kd_")
        yield entry | ({"q": q[row], "holm": corrected[row]} if row in q else {})


def saving() -> Iterator[Entry]:
    """What the teacher's cache saves: time of an epoch with it over that with the teacher, seed by seed."""
    found = results()
    seeds = sorted(found.get("softkd", {}).keys() & found.get("softkd_online", {}).keys())
    ratios = [images_per_s(found["softkd_online"][s]) / images_per_s(found["softkd"][s]) for s in seeds]
    if ratios:
        yield {"name": "softkd", "seeds": len(seeds), "ratio": np.mean(ratios)}


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
    for row in LENGTHS:
        if (other := compared().get(row)) is None:
            continue
        last = students()[row][0].last
        for epoch in range(1, last + 1):
            at = partial(_top1, epoch)
            entry: Entry = {"name": f"{row} {epoch}", "row": row, "epoch": epoch}
            yield entry | interval(combined({row: 1, other: -1}, at), "gain_")


def _top1(epoch: int, run: Trained) -> float:
    return run.epochs[epoch]["val/acc1"]
