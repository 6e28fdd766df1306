"""report.html: one page about a run that needs nothing but itself, no network, script or font."""

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from html import escape
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from distill_dynamics.errors import UserError
from distill_dynamics.report import figures
from distill_dynamics.report.run_files import RunProfiles, load_metrics, load_profiles
from distill_dynamics.report.summary import missing, summary
from distill_dynamics.report.svg import inline_svg
from distill_dynamics.report.tables import Row, accuracy_rows, signature_rows
from distill_dynamics.run import write_whole

_CSS = """
body { max-width: 70rem; margin: 0 auto; padding: 1rem; background: #fff; color: #222;
       font: 1rem/1.5 system-ui, sans-serif; }
h1 { margin: 0.5rem 0; overflow-wrap: anywhere; }
h2 { margin: 2.5rem 0 0.75rem; padding-top: 0.5rem; border-top: 1px solid #ddd; font-size: 1.25rem; }
p, li, figcaption { max-width: 46rem; }
.note, figcaption { color: #555; font-size: 0.9rem; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); gap: 2rem;
           grid-auto-flow: dense; }
figure { margin: 0; min-width: 0; break-inside: avoid; }
figcaption { margin-top: 0.4rem; }
.wide { grid-column: 1 / -1; }
svg { display: block; max-width: 100%; height: auto; }
svg * { stroke-linejoin: round; stroke-linecap: butt; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 0.3rem 1.25rem 0.3rem 0; border-bottom: 1px solid #e5e5e5;
         text-align: left; vertical-align: top; }
th:last-child, td:last-child { padding-right: 0; }
thead th { vertical-align: bottom; }
tbody th { font-weight: 400; white-space: nowrap; }
.numbers td, .numbers th + th { text-align: right; }
.numbers td { white-space: nowrap; }
.facts td { min-width: 14rem; overflow-wrap: anywhere; }
pre { overflow-x: auto; padding: 1rem; background: #f6f6f6; font-size: 0.85rem; line-height: 1.4; }
@media (max-width: 40rem) { th, td { padding-right: 0.7rem; } }
@media print { pre { white-space: pre-wrap; } h2 { break-after: avoid; } .scroll { overflow: visible; } }
"""

# No source is allowed but what is in the page, so that a browser enforces what is promised above.
_HEAD = """<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
      content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<link rel="icon" href="data:,">"""

_LINES = "One line a probed epoch, light to dark; orange the best checkpoint and dashed the teacher, if any."
_SPECTRUM = "Mean magnitude of the Fourier transform along the channels (Eq. 2)"
_CAPTIONS = {
    "entropy_evolution": f"Channel entropy (Eq. 5) by block. {_LINES}",
    "magnitude_evolution": f"Mean activation magnitude (Eq. 6) by block. {_LINES}",
    "entropy_heatmap": "The student's entropy again, as colour: one column a probed epoch.",
    "training_curves": "Each loss term, and top-1 on the validation set beside the teacher's.",
    "student_spectra": f"{_SPECTRUM}, student.",
    "teacher_spectra": f"{_SPECTRUM}, teacher.",
}

_CAUTION = (
    "Entropy here is counted in bins of one width for all layers, so a layer's entropy is roughly its "
    "scale-free entropy plus log2 of its scale: entropy and magnitude are not independent witnesses of a U, "
    "and one outlier activation anywhere rescales every layer. The range of the bins also changes from epoch "
    "to epoch and from student to teacher, so the curves compared above were counted in different bins."
)


def write_report(run_dir: str | os.PathLike[str]) -> Path:
    """Write `report.html` into a run directory, finished or not, and return its path.

    What the run has not written yet is named on the page. Equal runs give equal pages.

    Raises `UserError` where `run_dir` is no run directory or a Profile in it cannot be read.
    """
    run_dir = Path(run_dir)
    if not (run_dir / "run.json").exists():
        raise UserError(f"{run_dir}: not a run directory (one that `fit` wrote holds a run.json)")
    # ASCII, so that the file is the same whatever encoding the machine writes text in.
    page = _page(run_dir.resolve().name, _run(run_dir)).encode("ascii", "xmlcharrefreplace").decode()
    write_whole(run_dir / "report.html", page)
    return run_dir / "report.html"


def _page(title: str, body: str) -> str:
    title = escape(title)
    head = f"{_HEAD}\n<title>{title}</title>\n<style>{_CSS}</style>"
    body = f"<main>\n<h1>{title}</h1>\n{body}</main>"
    return f'<!DOCTYPE html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n{body}\n</body>\n</html>\n'


def _run(run_dir: Path) -> str:
    """Everything about one run, below its name."""
    metrics, profiles = load_metrics(run_dir), load_profiles(run_dir / "dynamics")
    starts = json.loads((run_dir / "run.json").read_text(encoding="utf-8"))["starts"]
    path = run_dir / "config.yaml"
    config = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    is_global = any(profile.range_mode == "global" for _, profile in profiles.named())
    notes = [
        "A curve is called a U where its lowest block is at neither end and both sides rise by more than "
        "chance among the images would have it. ± is the standard deviation over resamples of the images: "
        "how the value would differ with other images, not with another training.",
        *([_CAUTION] if is_global else []),
    ]
    signatures = _table(signature_rows(profiles), "numbers")
    sections = {
        "Accuracy": _table(accuracy_rows(metrics), "numbers"),
        "Figures": _figures(_draw(metrics, profiles), profiles),
        "Entropy signature": signatures
        and signatures + "".join(f'<p class="note">{note}</p>' for note in notes),
        "Provenance": _table(_provenance(starts), "facts"),
        "Configuration": config
        and f"<details><summary>config.yaml</summary><pre>{escape(config)}</pre></details>",
    }
    shown = "".join(
        f"<section>\n<h2>{title}</h2>\n{text}\n</section>\n" for title, text in sections.items() if text
    )
    absent = missing(metrics, profiles, starts, config)
    listed = "".join(f"<li>{escape(sentence)}</li>" for sentence in absent)
    return (
        f"<p>{escape(summary(metrics, profiles))}</p>\n"
        + (f'<ul class="note">{listed}</ul>\n' if absent else "")
        + shown
    )


def _draw(metrics: list[dict[str, float]], profiles: RunProfiles) -> dict[str, Figure]:
    drawn = figures.of_run(*profiles)
    if profiles.teacher is not None:
        with suppress(UserError):  # all its layers are dead, and the rest of the page is worth having
            drawn["teacher_spectra"] = figures.spectra(profiles.teacher)
    if any(name in row for row in metrics for name in ("train/loss", "val/loss")):
        drawn["training_curves"] = figures.training_curves(metrics)
    return drawn


def _figures(drawn: dict[str, Figure], profiles: RunProfiles) -> str:
    blocks = []
    for name, figure in drawn.items():
        wide = ' class="wide"' if "spectra" in name else ""
        svg = inline_svg(figure, name, _alternative(name, profiles))
        blocks.append(f"<figure{wide}>\n{svg}<figcaption>{_CAPTIONS[name]}</figcaption>\n</figure>")
    return f'<div class="figures">\n{"".join(blocks)}\n</div>' if blocks else ""


def _alternative(name: str, profiles: RunProfiles) -> str:
    """What a figure shows, for who does not see it: the ends and the lowest point of each curve."""
    measure, _, kind = name.partition("_")
    if kind != "evolution":
        return _CAPTIONS[name]
    curves = [(who, getattr(profile, measure)) for who, profile in profiles.named()]
    said = [
        f"{who}: first {y[0]:.3g}, lowest {y.min():.3g} at block {y.argmin() + 1}, last {y[-1]:.3g}"
        for who, y in curves
    ]
    return f"{_CAPTIONS[name]} {'; '.join(said)}."


def _provenance(starts: list[dict[str, Any]]) -> list[Row]:
    """A column a start of the run, a row a fact; what a start does not have is a dash."""
    columns = [dict(_flat(start)) for start in starts]
    facts = dict.fromkeys(fact for column in columns for fact in column)
    rows = [
        (fact, *("–" if column.get(fact) is None else str(column[fact]) for column in columns))
        for fact in facts
    ]
    return [("fact", *(f"start {number}" for number in range(1, len(starts) + 1))), *rows] if starts else []


def _flat(facts: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in facts.items():
        if isinstance(value, dict):
            yield from ((f"{name}: {inner}", content) for inner, content in value.items())
        else:
            yield name.replace("_", " "), value


def _table(rows: list[Row], kind: str) -> str:
    """Rows of text, the first of them headers, as a table that scrolls by itself on a narrow screen."""
    if not rows:
        return ""
    header = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in rows[0])
    body = ""
    for first, *others in rows[1:]:
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in others)
        body += f'<tr><th scope="row">{escape(first)}</th>{cells}</tr>\n'
    return (
        f'<div class="scroll"><table class="{kind}">\n<thead><tr>{header}</tr></thead>\n'
        f"<tbody>\n{body}</tbody>\n</table></div>"
    )
