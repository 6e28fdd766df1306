"""Made Profiles and directories: what `fit` and `analyze` write, with numbers chosen by hand."""

import csv
import json

import numpy as np
import pytest
import yaml
from profiles import profile_of

from distill_dynamics.report import page
from distill_dynamics.report.gallery import gallery
from distill_dynamics.report.runs import load_runs
from distill_dynamics.report.study import Study

FALLING, U = np.array([4.4, 4.3, 4.2, 4.1]), np.array([4.4, 4.3, 4.0, 4.25])
TEACHER = np.array([4.5, 4.1, 4.2, 4.3, 4.4, 4.45])
VERSIONS = {"torch": "2.14.1", "timm": "1.0.31"}


def profile(epoch, entropy, images=4, model="deit", magnitude=None, dead=False, **changed):
    """Images that differ by less than 0.01 bits: every bend of `entropy` is far above the noise."""
    layers = len(entropy)
    wobble = np.random.default_rng(0).uniform(-0.005, 0.005, (images, layers))
    magnitude = np.arange(1.0, layers + 1) if magnitude is None else np.asarray(magnitude, float)
    fields = {
        "entropy": entropy,
        "entropy_images": np.asarray(entropy) + wobble - wobble.sum(0) / max(1, images),
        "magnitude": magnitude,
        "magnitude_images": np.tile(magnitude, (images, 1)),
        "peak_images": np.tile(np.where(np.arange(layers) == 1, 90.0, 10.0), (images, 1)),
        "median_images": np.full((images, layers), 2.0),
        "peak_channel": np.full(layers, 3),
        "spectrum": [np.zeros(16) if dead else np.linspace(0.2, 0.1, 16)] * layers,
        "spectrum_se": [np.full(16, 0.001)] * layers,
        "value_range": np.tile([-4.0, 4.0], (layers, 1)),
        "clipped": np.zeros(layers),
        "range_mode": "global",
        "bins": 100,
        "probe_id": "p1",
    }
    return profile_of(
        model=model, epoch=epoch, layers=[f"blocks.{i}" for i in range(layers)], **{**fields, **changed}
    )


def config(terms=None, seed=0, epochs=3, **model):
    student = {"class_path": "distill_dynamics.Backbone", "init_args": {"name": "deit"}}
    teacher = {"class_path": "distill_dynamics.Backbone", "init_args": {"name": "cait"}}
    return {
        "seed_everything": seed,
        "trainer": {"max_epochs": epochs, "enable_progress_bar": None},
        "model": {
            "student": student,
            "teacher": teacher,
            "terms": terms or {},
            "alpha": 0.9,
            "temperature": 1.0,
            **model,
        },
        "data": {"class_path": "x.Data", "init_args": {"num_workers": seed}},
        "name": f"run-{seed}",
        "runs_dir": "runs",
        "wandb": {"tags": [str(seed)]},
        "probe": {"every_n_epochs": 1},
    }


def term(loss="SpectralKD", weight=0.2, first=0, last=0, pairs=None, **init_args):
    path = f"distill_dynamics.losses.{loss}"
    made = {"class_path": path, **({"init_args": init_args} if init_args else {})}
    return {"loss": made, "weight": weight, "first": first, "last": last, "pairs": pairs}


def start(seed=0, ended="ended", **changed):
    return {
        "from_epoch": 0,
        "seed": seed,
        "command": "distill_dynamics fit --config <b>.yaml",
        "commit": "c1f024bb",
        "data": {"name": "Data", "fingerprint": "d1", "val_images": 1000},
        "images_a_step": 16,
        "versions": dict(VERSIONS),
        "ended": {"epoch": 3, "error": None} if ended == "ended" else ended,
        **changed,
    }


def metrics(*top1, teacher=90.0):
    measured = {"teacher/acc1": teacher, "teacher/acc5": 99.5} if teacher else {}
    rows = [{"epoch": 0, "step": 0, **measured}]
    for n, value in enumerate(top1, start=1):
        losses = {"train/loss": 2.0 / n, "train/loss_ce": 4.0 / n}
        rows.append({"epoch": n, "step": 5 * n, **losses, "val/acc5": 95.0 + n, "val/acc1": value})
    return rows


def write_run(folder, rows=None, conf=None, starts=None, **profiles):
    """Of what is empty there is no file."""
    (folder / "dynamics").mkdir(parents=True)
    starts = [start()] if starts is None else starts
    (folder / "run.json").write_text(json.dumps({"id": "abc", "starts": starts}))
    if rows := metrics(70.0, 80.0, 79.0) if rows is None else rows:
        with (folder / "metrics.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
            writer.writeheader()
            writer.writerows(rows)
    if conf := config() if conf is None else conf:
        (folder / "config.yaml").write_text(yaml.safe_dump(conf, sort_keys=False))
    for name, content in profiles.items():
        content.save(folder / "dynamics" / f"{name}.npz")
    return folder


def all_profiles(shift=0.0, **changed):
    """A run's Profiles by file name; `shift` moves its students' curves up."""
    return {
        "teacher": profile(None, TEACHER, **{"model": "cait", **changed}),
        "student_epoch_0000": profile(0, FALLING + shift, **changed),
        "student_epoch_0003": profile(3, U + shift, **changed),
        "student_best": profile(2, U + shift, **changed),
    }


def write_analysis(folder, curves, **more):
    """`curves`: (label, range, epoch, best, Profile); `more` goes into the record."""
    entries = []
    for label, value_range, epoch, best, content in curves:
        stem = "best" if best else "model" if epoch is None else f"epoch_{epoch:04d}"
        entry = {"label": label, "range": value_range, "epoch": epoch, "best": best}
        entries.append({**entry, "profile": f"profiles/{label}/{value_range}/{stem}.npz"})
        content.save(folder / entries[-1]["profile"])
    images = {"source": "sample", "n": 4, "seed": 0, "files": ["a"] * 4}
    record = {"schema": 1, "command": "analyze", "versions": VERSIONS, "images": images, "curves": entries}
    record |= more
    (folder / "analysis.json").write_text(json.dumps(record))
    return folder


def write_published(path, rows, layers=4):
    header = ",".join(["Model/Epoch", *(f"Layer_{n}" for n in range(1, layers + 1))])
    lines = [",".join([name, *map(str, values)]) for name, values in rows.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


def study(folder, **runs):
    """Name → (configuration, top-1 by epoch), and further what changes of its start, and its Profiles."""
    paths = []
    for name, (conf, top1, *rest) in runs.items():
        changed, profiles = [*rest, {}, {}][:2]
        starts = [start(conf["seed_everything"], **changed)]
        paths.append(write_run(folder / name, metrics(*top1), conf, starts, **profiles))
    return Study(load_runs(paths))


def seeds(name, terms, *top1, **changed):
    """Runs of one method for `study`, one a seed."""
    return {
        f"{name}{seed}": (config(terms, seed=seed), [10.0, value, value], changed)
        for seed, value in enumerate(top1)
    }


def write_page(out, *paths, only=None, **options):
    """The report, with some figures only where most of the time would go to drawing the others."""
    with pytest.MonkeyPatch.context() as patch:
        if only is not None:
            some = (lambda study: [p for p in gallery(study) if p.name in only]) if only else lambda _: []
            patch.setattr(page, "gallery", some)
        return page.write_report(paths, out, **options)
