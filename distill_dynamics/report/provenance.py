"""Where the numbers of a page come from: when, on what, of which images and by which command."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from distill_dynamics.report.records import Run
from distill_dynamics.report.tables import Table
from distill_dynamics.tables import COST, Row, cost_rows
from distill_dynamics.text import NOTHING, counted, listed

PAPER = "https://arxiv.org/abs/2511.06848"


class Duration(NamedTuple):
    """How long a run took."""

    seconds: float
    """0 where none of its starts says."""
    whole: bool
    """False where it had more starts than those that say: killed ones do not."""


def duration(run: Run) -> Duration:
    """The time of all starts of a run, as far as run.json has it; earlier versions recorded none."""
    known = [
        (end - begin).total_seconds()
        for start in run.starts
        if (begin := _time(start.get("started"))) and (end := _time(start.get("ended_at"))) and begin <= end
    ]
    return Duration(sum(known), len(known) == len(run.starts))


def _time(text: object) -> datetime | None:
    with suppress(TypeError, ValueError, OverflowError):
        return datetime.fromisoformat(text).astimezone(UTC)  # type: ignore[arg-type]
    return None


def in_words(time: Duration) -> str:
    """ "3 min 20 s", "5 h 12 min", "more than 2 d 3 h"."""
    seconds = round(time.seconds)
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if days:
        text = f"{days} d {hours % 24} h"
    elif hours:
        text = f"{hours} h {minutes % 60} min"
    else:
        text = f"{minutes} min {seconds % 60} s" if minutes else f"{max(1, seconds)} s"
    return text if time.whole else f"more than {text}"


def circumstances_of(runs: Sequence[Run]) -> list[str]:
    """When, for how long, on what and of which probe images: sentences for beside the figures."""
    begun = sorted(time for run in runs for start in run.starts if (time := _time(start.get("started"))))
    sentences = []
    if begun:
        days = [f"{time.day} {time:%B %Y}" for time in (begun[0], begun[-1])]
        when = f"{days[0]} at {begun[0]:%H:%M} UTC" if len(runs) == 1 else " to ".join(dict.fromkeys(days))
        took = duration(runs[0]) if len(runs) == 1 else Duration(0, True)
        sentences.append(f"Begun {when}" + (f"; it took {in_words(took)}." if took.seconds else "."))
    machines = dict.fromkeys(text for run in runs for start in run.starts if (text := _machine(start)))
    if machines:
        sentences.append(f"Computed on {listed([*machines])}.")
    return [*sentences, *_images(runs)]


def _machine(start: dict[str, Any]) -> str:
    """Such as "1 x cpu (Intel Xeon, 2 CPUs)"."""
    told = (start.get(key) for key in ("devices", "machine"))
    devices, machine = (text if isinstance(text, str) else "" for text in told)
    return f"{devices} ({machine})" if devices and machine else devices or machine


def _images(runs: Sequence[Run]) -> Iterator[str]:
    probed = [run for run in runs if run.latest is not None and len(run.latest.entropy_images)]
    counts = sorted({len(run.latest.entropy_images) for run in probed if run.latest})
    ids = dict.fromkeys(run.latest.probe_id for run in probed if run.latest)
    sources = dict.fromkeys(source for run in probed if (source := _source(run)))
    if not probed:
        return
    number = " to ".join(dict.fromkeys(str(count) for count in (counts[0], counts[-1])))
    of = f" of {listed([*sources])}" if sources else ""
    hashes = f" (hash of their pixels: {next(iter(ids))})" if len(ids) == 1 and "" not in ids else ""
    yield f"Curves are of {counted(number, 'probe image')}{of}{hashes}."


def _source(run: Run) -> str:
    if run.kind == "fit":
        data = run.last_start.get("data") or {}
        name, without_val = data.get("name"), data.get("classes") == 0 and data.get("val_images") == 0
        split = "training" if without_val else "validation"
        return f"the {split} images of {name}" if isinstance(name, str) else ""
    images = run.last_start.get("images")
    return str(images["source"]) if isinstance(images, dict) and "source" in images else ""


def origins(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """How each run was started, and its configuration; of an analysis once for all of its models."""
    labels: dict[Path, dict[str, None]] = {}
    for run in runs:
        labels.setdefault(run.path, {})[run.label] = None
    return [
        {
            "name": listed([*labels[run.path]]) if len(labels) > 1 else "",
            "tables": [
                Table("", "Starts of the run", _start_rows(run.starts), "facts"),
                *([Table("", COST, cost_rows(run.last_start))] if len(labels) > 1 else []),  # else in results
            ],
            "config": run.config and yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True),
        }
        for run in {run.path: run for run in runs}.values()
        if run.starts or run.config
    ]


_WORDS = {
    "acc1": "top-1 (%)",
    "knn1": "kNN top-1 (%)",
    "linear1": "linear top-1 (%)",
    "effective_rank": "effective rank of its features",
    "stated_acc1": "top-1 that its file states (%)",
    "val_images": "validation images",
    "val_classes": "classes of validation images",
    "val_queries": "validation images that kNN classifies",
    "gflop": "GFLOP",
    "ms_1": "ms for 1 image",
    "ms_32": "ms for 32 images",
}


def _start_rows(starts: list[dict[str, Any]]) -> list[Row]:
    """A column a start of the run, a row a fact; what a start does not have is a dash."""
    columns = [dict(_flat(start)) for start in starts]
    facts = dict.fromkeys(fact for column in columns for fact in column)
    rows = [(fact, *(_text(column.get(fact)) for column in columns)) for fact in facts]
    return [("fact", *(f"start {number}" for number in range(1, len(starts) + 1))), *rows] if starts else []


def _text(fact: Any) -> str:
    if isinstance(fact, list):
        return ", ".join(map(_text, fact))
    return NOTHING if fact is None else f"{fact:.6g}" if isinstance(fact, float) else str(fact)


def _flat(facts: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in facts.items():
        if name == "gates":  # they have a figure
            continue
        title = name.replace("_", " ")
        if isinstance(value, dict):
            yield from ((f"{title}: {_WORDS.get(inner, inner)}", content) for inner, content in value.items())
        else:
            yield title, value
