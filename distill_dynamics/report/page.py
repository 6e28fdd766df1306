"""The report: one HTML page about one run or several, that needs nothing but itself and no network."""

import base64
import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup, escape

from distill_dynamics.figures.floors import with_floors
from distill_dynamics.figures.order import distinct
from distill_dynamics.files import atomic_write_text
from distill_dynamics.report.cards import cards
from distill_dynamics.report.comparability import comparison_warnings
from distill_dynamics.report.findings import findings
from distill_dynamics.report.gallery import gallery
from distill_dynamics.report.guide import about_u, next_steps, recipes
from distill_dynamics.report.headline import headline
from distill_dynamics.report.illustrations import boxes, illustrations, save
from distill_dynamics.report.provenance import PAPER, circumstances_of, origins
from distill_dynamics.report.records import Run
from distill_dynamics.report.runs import load_runs
from distill_dynamics.report.study import Study
from distill_dynamics.report.tables import (
    Table,
    config_rows,
    contrast_rows,
    evolution_rows,
    loss_rows,
    over_plain_rows,
    range_rows,
    results_rows,
)
from distill_dynamics.runs.scores import OF_CLASSES, OF_FEATURES, scores_of
from distill_dynamics.tables import (
    COST,
    OTHER_CURVES,
    Named,
    accuracies,
    accuracy_rows,
    cost_rows,
    curve_rows,
    gap_rows,
    quality_caption,
    quality_rows,
    signature_rows,
    spectrum_rows,
)
from distill_dynamics.text import listed

_CSS, *_SCRIPTS = (
    resources.files(__package__).joinpath(name).read_text(encoding="ascii")
    for name in ("page.css", "page.js", "page_tools.js")
)
_JS = "\n".join(_SCRIPTS)
# No source is allowed but what is in the page, so that a browser enforces what is promised above.
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; "
    f"script-src 'sha256-{base64.b64encode(hashlib.sha256(_JS.encode()).digest()).decode()}'"
)

_LATEST = "Of the best checkpoint of each run, else of the last one probed"


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
    study, out = Study(load_runs(paths)), Path(out)
    pictures = gallery(study)
    if figures_dir is not None:
        save(pictures, Path(figures_dir))
    figures, runs = illustrations(pictures), study.runs
    spectra = [figure for figure in figures if "spectra" in figure.name]
    labels = [*dict.fromkeys(run.label for run in runs)]
    names = labels if len(labels) <= 4 else [f"{len(labels)} runs"]
    environment = Environment(
        loader=PackageLoader("distill_dynamics.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"code": _code, "unbroken": _unbroken, "breakable": _breakable}
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    page = environment.get_template("page.html.j2").render(
        title=", ".join(names),
        names=names,
        subtitle=_subtitle(study),
        policy=_POLICY,
        css=Markup(_CSS),
        js=Markup(_JS),
        cards=cards(study),
        headline=headline(study),
        about_u=about_u(runs),
        steps=next_steps(study),
        recipes=recipes(),
        paper=PAPER,
        circumstances=circumstances_of(runs),
        sentences=findings(study),
        contrasts=_contrasts(study),
        warnings=_warnings(runs),
        results=_results(study),
        figures=[figure for figure in figures if figure not in spectra],
        spectra=spectra,
        boxes=boxes(figures, labels),
        summary=_details(runs[0]) if len(runs) == 1 else _latest(runs),
        probes=_probes(runs) if len(runs) > 1 else {},
        settings=[Table("", "Settings that differ", config_rows(study), "facts")] if len(runs) > 1 else [],
        origins=origins(runs),
    )
    # ASCII, so that the file is the same whatever encoding the machine writes text in.
    atomic_write_text(out, page.encode("ascii", "xmlcharrefreplace").decode() + "\n")
    return out


def _code(text: str) -> Markup:
    """Text in `backticks` as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _unbroken(text: str) -> Markup:
    """Text with what belongs together, such as "top-1" and "10 %", in one line."""
    together = r"\b(?:\w{1,8}-\w{1,3}\b|[\d.]+ (?:[%×]|points))"
    return Markup(re.sub(together, r'<span class="unbroken">\g<0></span>', str(escape(text))))


def _breakable(text: str) -> Markup:
    """A name that may go on in the next line after its dots and underscores."""
    return Markup(re.sub(r"((?<=\w)_|(?<=[^\W\d])\.)(?=\w)", r"\1<wbr/>", str(escape(text))))


def _subtitle(study: Study) -> str:
    """What one training is, in words."""
    trained = [method for method in study.methods if method.runs[0].config]
    return trained[0].label if len(study.runs) == len(trained) == 1 else ""


def _contrasts(study: Study) -> list[Table]:
    if len(study.runs) == 1:
        return []
    how = (
        "Best top-1 against the baseline: SoftKD with all other settings equal, else plain training. "
        "Intervals are Student's t: of the differences seed by seed where both have the same seeds, else "
        "Welch's."
    )
    ranges = (
        "The lowest block of the entropy in several ranges of the bins. r: correlation over blocks with "
        "log2 of the magnitude, to which bins of one width tie the entropy."
    )
    return [
        Table("", how, contrast_rows(study), "words"),
        Table("", "Gained over no distillation, all other settings equal", over_plain_rows(study), "words"),
        Table("", ranges, range_rows(study.runs), "words"),
    ]


def _warnings(runs: Sequence[Run]) -> list[str]:
    if len(runs) == 1:
        return runs[0].warnings
    names: dict[str, list[str]] = {}
    for run in runs:
        for warning in run.warnings:
            names.setdefault(warning, []).append(run.name)
    own = [f"{listed(of)}: {warning}" for warning, of in names.items()]
    return [*(comparison_warnings(runs) if len(runs) > 1 else []), *own]


def _results(study: Study) -> list[Table]:
    floor = (
        "Terms of the loss, unweighted, and the least that any linear map from the student's channels "
        "reaches, of training images without augmentation."
    )
    losses = Table("", floor, loss_rows(study.runs))
    if len(study.runs) == 1:
        rows = accuracy_rows(study.runs[0].metrics)
        costs = cost_rows(study.runs[0].last_start)
        accuracy = Table("", _measured(study.runs), rows)
        return [accuracy, losses, Table("", COST, costs), *_quality(study.runs)]
    note = f"{_measured(study.runs)}. In percent; ± is the standard deviation over seeds."
    return [Table("", note, results_rows(study), "numbers results"), losses, *_quality(study.runs)]


def _measured(runs: Sequence[Run]) -> str:
    """What the scores of these runs are: of classes, of features, or of some runs each."""
    known = {scores_of(run.metrics) for run in runs if accuracies(run.metrics)}
    levels = sorted({run.chance for run in runs if run.chance is not None})
    chance = f"; chance is {listed([f'{level:.4g}' for level in levels])} %" if levels else ""
    told = {
        OF_CLASSES: "Accuracy on the validation set",
        OF_FEATURES: "kNN and linear top-1: a half of the labelled validation images classifies the other by "
        f"pooled features{chance}",
    }
    return ". ".join(text for scores, text in told.items() if scores in known)


def _quality(runs: Sequence[Run]) -> list[Table]:
    """How good the features of analysed models are: a table for all that the same labelled images tell of."""
    found: dict[str, dict[str, Mapping[str, float]]] = {}
    for run in runs:  # in each range of an analysis the same
        facts: Mapping[str, Any] = run.last_start.get("knn") or {}
        for epoch, quality in run.quality.items() if facts else ():
            name = f"{run.label}, {epoch}" if epoch else run.label
            found.setdefault(quality_caption(facts), {})[name] = quality
    return [Table("", caption, quality_rows(named.items())) for caption, named in found.items()]


def _latest(runs: Sequence[Run]) -> list[Table]:
    """Tables that compare several runs."""
    latest = {run.name: run.latest for run in runs if run.latest is not None}
    once = {run.label: run.latest for run in runs if run.latest is not None}  # no range concerns these
    known = distinct(one for run in runs for one in run.profiles.teachers())
    teachers = [(f"teacher, {teacher.model}", teacher) for teacher in known]
    return [
        _signatures(_LATEST, [*latest.items(), *teachers], runs),
        *_curves(_LATEST, [*once.items(), *teachers], runs),
        Table("Spectrum", _LATEST, spectrum_rows([*once.items(), *teachers])),
        Table("Evolution", "Change over the probed epochs", evolution_rows(runs)),
    ]


def _details(run: Run) -> list[Table]:
    """Every table about the Profiles of one run."""
    return [
        _signatures("Shape of the entropy curve", run.named(), [run]),
        *_curves("By block", run.named(), [run]),
        Table("Spectrum", "Channel spectra, massive activations", spectrum_rows(run.named())),
        Table(
            "Distance to the teacher", "Root mean square at matched relative depth", gap_rows(run.profiles)
        ),
        Table("Evolution", "Change over the probed epochs", evolution_rows([run])),
    ]


def _probes(runs: Sequence[Run]) -> dict[str, list[Table]]:
    """By run what `_latest` does not hold of it; what has no bins once a label."""
    probes, labels = {}, set[str]()
    for run in runs:
        if len(run.named()) > 1:
            known = {"Evolution"}
            if run.label in labels:
                known |= {"Spectrum", *(curve.title for curve in OTHER_CURVES)}
            tables = [table for table in _details(run) if table.heading not in known]
            probes[run.name] = [table._replace(heading="") for table in tables]
        labels.add(run.label)
    return probes


def _curves(caption: str, named: Named, runs: Sequence[Run]) -> list[Table]:
    """Of each statistic that the signature does not tell of; floors once a model and width."""
    floors = [*with_floors([one for run in runs for one in run.floors()]).items()]
    return [
        Table(curve.title, "At a student's width", curve_rows(floors, curve))
        if curve.kind == "halves"
        else Table(curve.title, caption, curve_rows(named, curve))
        for curve in OTHER_CURVES
    ]


def _signatures(caption: str, named: Named, runs: Sequence[Run]) -> Table:
    """The table of signatures, with bootstrap intervals where the analysis was asked for them."""
    bootstrap = all(run.bootstrap for run in runs)
    caption += ". In brackets 95 % bootstrap intervals over images" if bootstrap else ""
    return Table("Entropy signature", caption, signature_rows(named, bootstrap))
