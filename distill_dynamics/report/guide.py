"""What a page says to who sees such curves for the first time: what a U is, and what to do next.

Text in `backticks` is what one types. Never a cause, and no more than the numbers hold.
"""

import math
from collections.abc import Iterator, Sequence
from importlib import metadata

import numpy as np

from distill_dynamics.dynamics.signature import signature
from distill_dynamics.dynamics.signature.shape import LEAST_DEPTH
from distill_dynamics.figures.floors import with_floors
from distill_dynamics.report.headline import has_shape
from distill_dynamics.report.records import Run
from distill_dynamics.report.study import Study
from distill_dynamics.runs.scores import scores_of
from distill_dynamics.tables import accuracies
from distill_dynamics.text import counted, listed

_RECIPES = "configs/methods/README.md"


def recipes() -> tuple[str, str]:
    """Where the recipes are, and their address; "" while the project has none."""
    try:
        urls = metadata.metadata("distill_dynamics").get_all("Project-URL") or []
    except metadata.PackageNotFoundError:
        urls = []
    address = dict(url.split(", ", 1) for url in urls).get("Source", "").rstrip("/")
    return _RECIPES, f"{address}/blob/main/{_RECIPES}" if address else ""


# --- what a U is --------------------------------------------------------------------------------------


def about_u(runs: Sequence[Run]) -> list[str]:
    """What one must know to read the curves; [] without any."""
    profiles = [profile for run in runs for _, profile in run.named()]
    if not profiles:
        return []
    lines = [
        "Entropy tells how widely a block's channel values are spread: low is a compressed code. In a U the "
        "first blocks compress and the later ones expand again.",
        "A curve is called a U where its lowest block is at neither end and both sides rise by more than "
        f"chance among the images would have it, and by {LEAST_DEPTH} bits, without a second dip.",
        "± comes from resampling the images: how the value would differ with other images, not with another "
        "training.",
    ]
    if any(profile.range_mode == "global" for profile in profiles):
        lines.append(
            "In bins of one width a layer's entropy is roughly a scale-free entropy plus log2 of its scale: "
            "entropy and magnitude are not independent witnesses of a U, and one outlier activation rescales "
            "every layer. Curves of different epochs or models have different bins."
        )
    return lines


# --- what next ----------------------------------------------------------------------------------------

_MUCH = 0.1
"""Share of a block's variance beyond the student's width from which a term there is worth a thought."""


def next_steps(study: Study) -> list[str]:
    """What these runs give reason to do next, each with its reason."""
    trained = [run for run in study.runs if run.kind == "fit"]
    if not trained:
        return [*_scale_step(study.runs)]
    if len(trained) > 1:
        return [*_seeds(study), *_floor_step(trained), *_scale_step(trained)]
    run = trained[0]
    return [
        f"One run with one seed compares with nothing: {_more_runs(run)}`distill_dynamics report RUN RUN ... "
        "--out report.html` compares any runs.",
        *_training_steps(run),
        *_term_steps(run),
        *_floor_step([run]),
        *_scale_step([run]),
    ]


def _more_runs(run: Run) -> str:
    """What `fit` trains by itself to compare with."""
    data = run.last_start.get("data") or {}
    if data.get("classes") != 0:
        return "the same `fit` with `--baselines --seeds 3` trains SoftKD and no teacher beside it, and "
    if data.get("val_images") == 0:  # nothing that runs could be compared by
        return ""
    return "the same `fit` with `--seeds 3` trains it on three, and "


def _training_steps(run: Run) -> Iterator[str]:
    if not run.finished and run.starts:
        folder = f"{run.config.get('runs_dir') or 'runs'}/{run.path.name}"
        again = f"`distill_dynamics fit --config {folder}/config.yaml --ckpt_path last`"
        yield f"It has not come to its end: {again} goes on."
        return
    known = accuracies(run.metrics)
    best, last, teacher = (known.get(who) for who in ("student, best", "student, last", "teacher"))
    if best and last and best == last and best.epoch and best.epoch > 1:
        title = scores_of(run.metrics)[0].title
        yield f"The best epoch is the last: more epochs (`--trainer.max_epochs`) may still raise {title}."
    images = run.validation_images
    if best and teacher and images:
        variance = max(0.0, teacher.top1 / 100 * (1 - teacher.top1 / 100))
        margin = 196 * math.sqrt(2 * variance / images)
        if abs(best.top1 - teacher.top1) <= margin:
            yield (
                f"Student and teacher differ by no more than the choice of the {images:,} validation images "
                f"may make ({margin:.2f} points): a smaller student or a better teacher has more to show."
            )


def _term_steps(run: Run) -> Iterator[str]:
    """By what the loss is made of."""
    model = run.config.get("model") or {}
    if not model:
        return
    if not model.get("teacher") and not model.get("teachers"):
        yield "Without a teacher it is what distillation has to beat: give `model.teacher`."
        return
    terms = {name: term for name, term in (model.get("terms") or {}).items() if isinstance(term, dict)}
    features = {name: term for name, term in terms.items() if name not in ("ce", "kd")}
    if not features:
        yield "It learns from the teacher's logits alone; the recipes below have losses on features."
    for name, term in features.items():
        floor, losses = run.loss_floors.get(name), [row.get(f"train/loss_{name}") for row in run.metrics]
        known = [loss for loss in losses if loss is not None and math.isfinite(loss)]
        only_last = term.get("last") == 1 and not term.get("first") and not term.get("pairs")
        if floor and known and only_last and "PCATarget" not in str(term.get("loss")):
            yield (
                f"Term {name} ends at {known[-1]:.3g}, and no linear map from the student goes below "
                f"{floor:.3g}: `PCATarget` (`pca_target.yaml`) asks for a target that the student can hold."
            )


def _floor_step(runs: Sequence[Run]) -> Iterator[str]:
    """Whether the student's width is in the way."""
    for who, profile in with_floors([named for run in runs for named in run.floors()]).items():
        floor = profile.curve("capacity_floor")
        if not np.isfinite(floor).any():
            continue
        row = int(np.nanargmax(floor))
        share = f"{100 * floor[row]:.0f} % of the variance of block {profile.blocks[row]}"
        told = f"{who[:1].upper()}{who[1:]}: {share} is beyond any linear map from these"
        if floor[row] >= _MUCH:
            yield f"{told}; leave such blocks out of `pairs`, or weigh them less (`capacity_gate.yaml`)."
        else:
            yield f"{told}, the most of all blocks: the student's width is hardly the limit."


def _scale_step(runs: Sequence[Run]) -> Iterator[str]:
    """Where a U may be one of scale alone."""
    profiles = [profile for run in runs for profile in (run.latest, run.profiles.teacher) if profile]
    known = [profile for profile in profiles if has_shape(profile) and profile.range_mode == "global"]
    one_range = len({run.range for run in runs}) == 1
    if one_range and any(signature(profile).magnitude_agrees for profile in known):
        way = (
            "`fit` anew with `--probe.value_range scaled`"
            if runs[0].kind == "fit"
            else "`analyze` with `--value_range global layer scaled`"
        )
        yield f"Is a curve's U more than the layers' scale? {way} measures it without the scale."


def _seeds(study: Study) -> Iterator[str]:
    single = [method.label for method in study.finished if len(method.by_seed()) == 1]
    if single:
        who = listed(single) if len(single) <= 3 else f"{len(single)} methods"
        yield (
            f"{who}: one seed does not tell a difference from the spread over seeds; `fit` with `--seeds 3` "
            "trains three."
        )
    unsure = [c.method.label for c in study.contrasts if c.verdict == "not beyond chance"]
    if unsure:
        yield f"{listed(unsure)}: these seeds do not tell a difference from the baseline; more of them may."
    open_ = [run.name for run in study.runs if run.kind == "fit" and not run.finished]
    if open_:
        yield f"{counted(len(open_), 'run')} not at an end, and left out of means: {listed(open_)}."
