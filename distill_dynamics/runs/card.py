"""The model card of an exported student: README.md in its folder, from what the run has recorded."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from distill_dynamics.runs.directory import starts_of
from distill_dynamics.runs.metrics_csv import read_rows
from distill_dynamics.runs.scores import OF_CLASSES, OF_FEATURES, Score
from distill_dynamics.text import counted

if TYPE_CHECKING:
    from distill_dynamics.models.backbone import Backbone


def model_card(run_dir: Path, student: Backbone, epoch: int, top1: float | None) -> str:
    """Markdown under YAML front matter, as the Hugging Face hub reads it.

    `top1` is `val/acc1` after `epoch` epochs, percent, without classes `val/knn1`; None of a student that was
    not chosen by it. The rest is from run.json and metrics.csv; what those do not have, as they may be of an
    earlier version, is left out.
    """
    starts = starts_of(run_dir)
    start = starts[-1] if starts else {}
    data = start.get("data") or {}
    name = run_dir.resolve().name
    task = "image-classification" if student.num_classes else "image-feature-extraction"
    head: dict[str, Any] = {
        "library_name": "timm",
        "pipeline_tag": task,
        "tags": [task, "timm", "knowledge-distillation"],
    }
    if top1 is not None:
        of_classes = student.num_classes > 0  # a type of its own: readers take "accuracy" for that of classes
        kind, title = ("accuracy", OF_CLASSES[0].title) if of_classes else ("knn_top1", OF_FEATURES[0].title)
        result = {
            "task": {"type": task},
            "dataset": {"name": data.get("name", "?"), "type": data.get("name", "?")},
            "metrics": [{"type": kind, "name": f"{title} (%)", "value": round(top1, 4)}],
        }
        head["model-index"] = [{"name": name, "results": [result]}]
    rows = _rows(run_dir, student, epoch, top1, data)
    rows |= _teachers(run_dir, start, student)
    rows |= _cost(start)
    rows["seed"] = str(start["seed"]) if "seed" in start else ""
    versions = {**(start.get("versions") or {}), "commit": start.get("commit"), "Python": start.get("python")}
    made_by = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    commands = dict.fromkeys(one["command"] for one in starts if "command" in one)
    return _CARD.format(
        head=yaml.safe_dump(head, sort_keys=False, allow_unicode=True, width=1000),
        student=_code(student.name),
        chosen="last" if top1 is None else "best",
        names="names = model.pretrained_cfg.get('label_names')\n" if student.num_classes else "",
        run=_code(name),
        import_=_import(student),
        rows="\n".join(f"| {name} | {text} |" for name, text in rows.items() if text),
        commands="\n".join(f"    {' '.join(command.splitlines())}" for command in commands),
        made_by=f"by {made_by}." if made_by else "",
    )


_CARD = """\
---
{head}---

# {student}, the {chosen} student of {run}

| | |
|---|---|
{rows}

```python
import timm
{import_}
model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()
config = timm.data.resolve_model_data_config(model)
transform = timm.data.create_transform(**config)
{names}```

Made with

{commands}

{made_by}
"""


def _import(student: Backbone) -> str:
    """A line of code, where plain timm refuses the folder: it has no such architecture."""
    from distill_dynamics.models.reshape import ARCHITECTURES  # torch is there, as there is a student

    if student.name not in ARCHITECTURES:
        return ""
    return f"import distill_dynamics.models.reshape  # without it timm says: Unknown model ({student.name})\n"


def _rows(
    run_dir: Path, student: Backbone, epoch: int, top1: float | None, data: dict[str, Any]
) -> dict[str, str]:
    (height, width), crop, interpolation, _ = student.evaluation
    resized = "" if crop == 1 else f", the centre of a side of {min(height, width) / crop:.0f}"
    pixels = f"{student.input_size[0]} x {height} x {width} pixels{resized}, {interpolation}"
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (student.mean, student.std))
    images = f", {data['val_images']} images" if data.get("val_images") else ""
    parameters = sum(parameter.numel() for parameter in student.parameters())
    first, *others = OF_CLASSES if student.num_classes else OF_FEATURES
    if data.get("val_classes"):
        images += f", one half classifies the other; by chance {100 / data['val_classes']:.4g} %"
    given, after = student.timm_kwargs, counted(epoch, "epoch")
    shape = [f"{key} {given[key]}" for key in ("base", "width", "lifted_head") if key in given]
    return {
        "shape": ", ".join(shape),
        "parameters": f"{parameters / 1e6:.2f} M",
        "input": f"{pixels}; mean {mean}, std {std}",
        "classes": f"{student.num_classes or 'none: the model gives features, and no logits'}",
        "data": ", fingerprint ".join(_code(data[key]) for key in ("name", "fingerprint") if key in data),
        "trained": after if top1 is None else "",
        f"{first.title}, validation": "" if top1 is None else f"{top1:.2f} % after {after}{images}",
        **{
            f"{score.title}, validation": _with_unit(metric_at(run_dir, epoch, score.metric), score)
            for score in others
        },
    }


def _teachers(run_dir: Path, start: dict[str, Any], student: Backbone) -> dict[str, str]:
    """Who taught, and how well: the one, or those with names."""
    teachers = {"teacher": {"role": "teacher", **(start.get("teacher") or {})}}
    if named := start.get("teachers"):
        one = {} if any(of["role"] == "teacher" for of in named.values()) else teachers
        teachers = one | {f"teacher {name}": of for name, of in named.items()}
    rows = {}
    for who, of in teachers.items():
        rows[who] = ", ".join(_code(of[key]) for key in ("name", "weights") if of.get(key))
        for score in OF_CLASSES[:1] if student.num_classes else OF_FEATURES:
            value = metric_at(run_dir, 0, f"{of['role']}/{score.name}")
            rows[f"{who}'s {score.title}"] = _with_unit(value, score)
    return rows


def _cost(start: dict[str, Any]) -> dict[str, str]:
    """What the student costs, and how many times more its teacher does; {} where run.json has no numbers."""
    student, teacher = start.get("student_cost") or {}, start.get("teacher_cost") or {}
    found, which = {}, "first teacher" if len(start.get("teachers") or ()) > 1 else "teacher"
    for key, (name, unit) in _COSTS.items():
        if value := student.get(key):
            times = f" ({which}: {teacher[key] / value:.1f} times as much)" if teacher.get(key) else ""
            found[name] = f"{value:.4g} {unit}{times}"
    if "ms_1" in student:
        found["measured on"] = f"{start.get('devices', '?')}, threads: {start.get('threads', '?')}, float32"
    return found


_COSTS = {
    "megabytes": ("weights", "MB"),
    "gflop": ("multiplications and additions, 1 image", "GFLOP"),
    "ms_1": ("latency, 1 image", "ms"),
    "ms_32": ("latency, 32 images", "ms"),
}


def metric_at(run_dir: Path, epoch: int, name: str) -> float | None:
    """A metric after `epoch` epochs, as metrics.csv has it."""
    path = run_dir / "metrics.csv"
    rows, _ = read_rows(path) if path.exists() else ([], 0)
    return next((float(row[name]) for row in rows if float(row["epoch"]) == epoch and name in row), None)


def _with_unit(value: float | None, score: Score) -> str:
    return "" if value is None else f"{score.text(value)} {score.unit}".rstrip()


def _code(text: str) -> str:
    """Any text as code within a line of a table."""
    text = " ".join(text.split()).replace("|", r"\|")
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " if "`" in text else ""
    return f"{fence}{space}{text}{space}{fence}"
