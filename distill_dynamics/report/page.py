"""The report: one HTML page about one run or several, that needs nothing but itself and no network."""

import base64
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from distill_dynamics.figures.order import distinct
from distill_dynamics.files import atomic_write_text
from distill_dynamics.report.comparing import comparison_warnings
from distill_dynamics.report.gallery import Picture, gallery, save
from distill_dynamics.report.records import Run, listed
from distill_dynamics.report.runs import load_runs
from distill_dynamics.report.summary import findings
from distill_dynamics.report.svg import draw
from distill_dynamics.report.tables import config_rows, evolution_rows, results_rows
from distill_dynamics.tables import (
    OTHER_CURVES,
    Named,
    Row,
    accuracy_rows,
    curve_rows,
    gap_rows,
    signature_rows,
    spectrum_rows,
)

_CSS = resources.files(__package__).joinpath("page.css").read_text(encoding="ascii")
_JS = resources.files(__package__).joinpath("page.js").read_text(encoding="ascii")

# No source is allowed but what is in the page, so that a browser enforces what is promised above.
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; "
    f"script-src 'sha256-{base64.b64encode(hashlib.sha256(_JS.encode()).digest()).decode()}'"
)
_HEAD = f"""<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<link rel="icon" href="data:,">"""

_U = (
    "A curve is called a U where its lowest block is at neither end and both sides rise by more than "
    "chance among the images would have it, and by 0.05 bits, without a second dip. ± comes from resampling "
    "the images: how the value would differ with other images, not with another training."
)
_CAUTION = (
    "Entropy in the global range is counted in bins of one width for all layers, so a layer's entropy is "
    "roughly its scale-free entropy plus log2 of its scale: entropy and magnitude are not independent "
    "witnesses of a U, and one outlier activation anywhere rescales every layer. The range of the bins also "
    "changes from epoch to epoch and from student to teacher, so their curves are counted in different bins."
)


def write_report(
    paths: Iterable[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    figures_dir: str | os.PathLike[str] | None = None,
) -> Path:
    """Write one page about run directories, folders of `analyze` and published CSVs; return its path.

    Runs may be unfinished: what they have not written yet is named on the page. Equal runs give equal pages.
    Where `figures_dir` is given, each figure goes there too, as PNG and as PDF.

    Raises `UserError` where a path is none of these.
    """
    runs, out = load_runs(paths), Path(out)
    pictures = gallery(runs)
    if figures_dir is not None:
        save(pictures, Path(figures_dir))
    labels = [*dict.fromkeys(run.label for run in runs)]
    title = ", ".join(labels) if len(labels) <= 4 else f"{len(labels)} runs"
    # ASCII, so that the file is the same whatever encoding the machine writes text in.
    page = _page(title, runs, pictures).encode("ascii", "xmlcharrefreplace").decode()
    atomic_write_text(out, page)
    return out


def _page(title: str, runs: Sequence[Run], pictures: Sequence[Picture]) -> str:
    sections = {
        "Findings": _findings(runs),
        "Results": _results(runs),
        "Figures": _figures(pictures, runs),
        "Numbers": _numbers(runs),
        "Differences in configuration": _table("Settings that differ", config_rows(runs), "facts")
        if len(runs) > 1
        else "",
        "Provenance": _provenance(runs),
    }
    shown = [(name, name.split()[0].lower(), text) for name, text in sections.items() if text]
    contents = "".join(f'<li><a href="#{anchor}">{name}</a></li>' for name, anchor, _ in shown)
    body = "".join(
        f'<section aria-labelledby="{anchor}">\n<h2 id="{anchor}">{name}</h2>\n{text}\n</section>\n'
        for name, anchor, text in shown
    )
    title = escape(title)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
{_HEAD}
<title>{title}</title>
<style>{_CSS}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the report</a>
<header>
<h1>{title}</h1>
<nav aria-label="Contents"><ul>{contents}</ul></nav>
</header>
<main id="main">
{body}</main>
<div id="announcement" class="hidden" aria-live="polite"></div>
<script>{_JS}</script>
</body>
</html>
"""


def _findings(runs: Sequence[Run]) -> str:
    said = "".join(f"<li>{escape(sentence)}</li>" for sentence in findings(runs))
    found = f'<ul class="findings">{said}</ul>\n'
    of_runs: dict[str, list[str]] = {}
    for run in runs:
        for warning in run.warnings:
            of_runs.setdefault(warning, []).append(run.name)
    warned = [
        *(comparison_warnings(runs) if len(runs) > 1 else []),
        *(f"{listed(names)}: {warning}" if len(runs) > 1 else warning for warning, names in of_runs.items()),
    ]
    if not warned:
        return found
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in warned)
    return f'{found}<div class="warnings">\n<h3>Warnings</h3>\n<ul>{items}</ul>\n</div>'


def _results(runs: Sequence[Run]) -> str:
    if len(runs) == 1:
        return _table("Accuracy on the validation set", accuracy_rows(runs[0].metrics), "numbers")
    note = "Top-1 on the validation set in percent; ± is the standard deviation over seeds."
    return _table(note, results_rows(runs), "numbers results")


# --- figures ------------------------------------------------------------------------------------------


def _figures(pictures: Sequence[Picture], runs: Sequence[Run]) -> str:
    shown, known = [], []
    for picture in pictures:
        drawing = draw(picture.figure, picture.name)
        curves = [{**curve, "run": curve["run"] or picture.run} for curve in drawing.curves]
        known += curves
        wide = ' class="wide"' if drawing.width > 500 else ""
        # Below 1.1 pixels a point text is too small to read: a narrow screen scrolls the figure instead.
        # Above 1.5 it is larger than the page's.
        label = escape(_alternative(picture, curves))
        style = f"min-width: {1.1 * drawing.width:.0f}px; max-width: {1.5 * drawing.width:.0f}px"
        svg = drawing.svg.replace("<svg ", f'<svg role="img" aria-label="{label}" style="{style}" ', 1)
        shown.append(
            f'<figure id="{picture.name}"{wide}{" data-curves" if curves else ""}>\n'
            f"<h3>{escape(picture.title)}</h3>\n"
            f'<div class="plot"><div class="scroll">{svg}</div></div>\n'
            f"<figcaption>{escape(picture.caption)}</figcaption>\n"
            f"{_values(curves)}{_data(curves)}</figure>"
        )
    return _controls(known, runs) + f'<div class="figures">\n{"".join(shown)}\n</div>' if shown else ""


def _alternative(picture: Picture, curves: Sequence[dict[str, Any]]) -> str:
    """What a figure shows, for who does not see it: the ends of each curve, where they are few."""
    told = [
        f"{curve['label']}: {curve['points'][0][2]} {curve['points'][0][3]}, "
        f"{curve['points'][-1][2]} {curve['points'][-1][3]}"
        for curve in curves
        if curve["points"]
    ]
    said = "; ".join(told) if len(told) <= 10 else f"{len(told)} curves"
    return f"{picture.title}. {said}." if told else f"{picture.title}. {picture.caption}"


def _data(curves: Sequence[dict[str, Any]]) -> str:
    """For page.js; `<` would end the element."""
    text = json.dumps(list(curves), separators=(",", ":")).replace("<", "\\u003c")
    return f'<script type="application/json">{text}</script>\n' if curves else ""


def _values(curves: Sequence[dict[str, Any]]) -> str:
    """What the curves' points are, as tables: curves that have the same points share one."""
    groups: dict[tuple[str, str, tuple[str, ...]], list[dict[str, Any]]] = {}
    for curve in curves:
        names = tuple(name for _, _, name, _ in curve["points"])
        if names:
            groups.setdefault((curve["panel"], curve["unit"], names), []).append(curve)
    tables = ""
    for (panel, unit, names), group in groups.items():
        rows = [("", *names), *((c["label"], *(value for *_, value in c["points"])) for c in group)]
        if len(names) > max(12, len(group)):  # the longer side goes down
            rows = [*zip(*rows, strict=True)]
        tables += _table(f"{panel}{f' ({unit})' if unit else ''}", rows, "numbers values")
    return f"<details><summary>Values</summary>\n{tables}</details>\n" if tables else ""


def _controls(curves: Sequence[dict[str, Any]], runs: Sequence[Run]) -> str:
    """Boxes that page.js shows and listens to: without it there is nothing to switch."""
    drawn = {curve["run"] for curve in curves}
    labels = [label for label in dict.fromkeys(run.label for run in runs) if label in drawn]
    epochs = sorted({curve["epoch"] for curve in curves if curve["role"] == "student"} - {None})
    roles = [role for role in ("best", "teacher") if any(curve["role"] == role for curve in curves)]
    sets = {
        "Runs": ("run", labels if len(labels) > 1 else []),
        "Epochs": ("epoch", [str(epoch) for epoch in epochs]),
        "Others": ("role", roles),
    }
    said = {"best": "best checkpoint"}
    fields = ""
    for legend, (name, values) in sets.items():
        boxes = "".join(
            f'<label><input type="checkbox" name="{name}" value="{escape(value)}" checked> '
            f"{escape(said.get(value, value))}</label>"
            for value in values
        )
        buttons = "".join(
            f'<button type="button" data-set="{text}" aria-label="{legend}: {text}">{text}</button>'
            for text in ("all", "none")
        )
        if boxes:
            fields += f"<fieldset><legend>{legend}</legend>{buttons}{boxes}</fieldset>\n"
    if not fields:
        return ""
    opened = '<details id="controls" class="controls" hidden open><summary>Curves shown</summary>'
    return f"{opened}\n{fields}</details>\n"


# --- tables -------------------------------------------------------------------------------------------


def _numbers(runs: Sequence[Run]) -> str:
    """Tables that compare the runs, and what each of them holds in detail."""
    if len(runs) == 1:
        numbers = "".join(f"<h3>{name}</h3>\n{table}" for name, table in _details(runs[0]).items())
    else:
        latest = {run.name: run.latest for run in runs if run.latest is not None}
        # No range concerns them.
        spectra = {run.label: run.latest for run in runs if run.latest is not None}
        teachers = {f"teacher, {t.model}": t for t in distinct(run.profiles.teacher for run in runs)}
        tables = {
            "Entropy signature": _signatures(_LATEST, [*latest.items(), *teachers.items()], runs),
            **_curve_tables(_LATEST, [*spectra.items(), *teachers.items()]),
            "Spectrum": _table(_LATEST, spectrum_rows([*spectra.items(), *teachers.items()]), "numbers"),
            "Evolution": _table("Change over the probed epochs", evolution_rows(runs), "numbers"),
        }
        numbers = "".join(f"<h3>{name}</h3>\n{table}" for name, table in tables.items() if table)
        for number, run in enumerate(runs):
            if len(run.named()) > 1:  # else the tables above hold all of it
                said = {"Evolution"}  # above; and a spectrum has no range
                if run.label in [other.label for other in runs[:number]]:
                    said |= {"Spectrum", *(curve.title for curve in OTHER_CURVES)}
                every = "".join(table for name, table in _details(run).items() if name not in said)
                numbers += f"<details><summary>{escape(run.name)}: every probe</summary>\n{every}</details>\n"
    everything = [profile for run in runs for _, profile in run.named()]
    notes = [
        *([_U] if everything else []),
        *([_CAUTION] if any(profile.range_mode == "global" for profile in everything) else []),
    ]
    return numbers and numbers + "".join(f'<p class="note">{note}</p>\n' for note in notes)


_LATEST = "Of the best checkpoint of each run, else of the last one probed"


def _details(run: Run) -> dict[str, str]:
    """Every table about the Profiles of one run, those that hold something."""
    tables = {
        "Entropy signature": _signatures("Shape of the entropy curve", run.named(), [run]),
        **_curve_tables("By block", run.named()),
        "Spectrum": _table("Channel spectra, massive activations", spectrum_rows(run.named()), "numbers"),
        "Distance to the teacher": _table(
            "Root mean square at matched relative depth", gap_rows(run.profiles), "numbers"
        ),
        "Evolution": _table("Change over the probed epochs", evolution_rows([run]), "numbers"),
    }
    return {name: table for name, table in tables.items() if table}


def _curve_tables(caption: str, named: Named) -> dict[str, str]:
    """Of each statistic that the signature does not tell of."""
    return {curve.title: _table(caption, curve_rows(named, curve), "numbers") for curve in OTHER_CURVES}


def _signatures(caption: str, named: Named, runs: Sequence[Run]) -> str:
    """The table of signatures, with bootstrap intervals where the analysis was asked for them."""
    bootstrap = all(run.bootstrap for run in runs)
    caption += ". In brackets 95 % bootstrap intervals over images" if bootstrap else ""
    return _table(caption, signature_rows(named, bootstrap), "numbers")


def _provenance(runs: Sequence[Run]) -> str:
    """How each run was started, and its configuration; of an analysis once for all of its models."""
    text = ""
    owners = {run.path: dict.fromkeys(o.label for o in runs if o.path == run.path) for run in runs}
    for run in {run.path: run for run in runs}.values():
        facts = _table("Starts of the run", _start_rows(run.starts), "facts")
        if run.config:
            dumped = escape(yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True))
            facts += f"<details><summary>config.yaml</summary><pre>{dumped}</pre></details>\n"
        if facts and len(owners) > 1:
            name = escape(listed([*owners[run.path]]))
            facts = f"<details><summary>{name}</summary>\n{facts}</details>\n"
        text += facts
    return text


def _start_rows(starts: list[dict[str, Any]]) -> list[Row]:
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


def _table(caption: str, rows: Sequence[Row], kind: str) -> str:
    """Rows of text, the first of them headers, as a table that scrolls by itself on a narrow screen."""
    if not rows:
        return ""
    # An empty corner is no header of anything.
    header = "".join(
        f'<th scope="col">{escape(cell)}</th>' if cell else "<td></td>" for cell in map(str, rows[0])
    )
    body = ""
    for first, *others in rows[1:]:
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in others)
        body += f'<tr><th scope="row">{escape(first)}</th>{cells}</tr>\n'
    return (
        f'<div class="scroll" tabindex="0" role="group" aria-label="{escape(caption)}">'
        f'<table class="{kind}">\n<caption>{escape(caption)}</caption>\n<thead><tr>{header}</tr></thead>\n'
        f"<tbody>\n{body}</tbody>\n</table></div>\n"
    )
