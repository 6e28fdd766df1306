"""A method: the runs that differ by seed alone, what it is called, and which settings make it that method."""

import json
import math
import re
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from distill_dynamics.report.defaults import defaults_of
from distill_dynamics.report.records import Run
from distill_dynamics.runs.scores import Score, scores_of

SOFTKD, PLAIN = "SoftKD", "no distillation"
"""Names of the methods that others are compared with."""

# Keys that name a run, place it, watch it or repeat it, and do not change what it is an experiment of.
_NAMES = ("name", "runs_dir", "ckpt_path", "wandb")
_MACHINE = (
    "data.init_args.num_workers",
    "data.init_args.data_dir",  # the fingerprint of the data says whether they are others
    "data.init_args.download",
    "trainer.accelerator",
    "trainer.devices",  # what matters of them is the number of images a step
    "trainer.num_nodes",
    "trainer.strategy",
    "trainer.logger",
    "trainer.profiler",
    "trainer.default_root_dir",
    "trainer.enable_progress_bar",
    "trainer.enable_model_summary",
    "trainer.log_every_n_steps",
)
_NO_METHOD = (
    *_NAMES,
    *_MACHINE,
    "seed_everything",
    "probe",
    "checkpoint_every_n_epochs",
    "data.init_args.seed",
)
# Settings that earlier versions had no key for, by the last word of it, at the value of what they did.
_AS_BEFORE = {("freeze_backbone", "false"), ("labels", "true"), ("standardise", "channel")}
# Callbacks that measure beside the training, and leave it as it is.
_WATCHING = ("distill_dynamics.callbacks.EMA", "distill_dynamics.callbacks.GradientConflict")


@dataclass(eq=False)
class Method:
    """Finished runs that differ by their seed alone, or one run that has not finished."""

    name: str
    """As in the paper's Table 1: "SoftKD", "SpectralKD", "SpectralKD + ProjectorKD", "no distillation"."""
    options: str
    """Arguments of the losses that are not the default: "trainable: false"; terms are parted by ";"."""
    layers: str
    """"F 2, L 1": the first two and the last student block."""
    weight: str
    """β of each term."""
    settings: dict[str, str]
    """What makes it the experiment it is: the flat configuration without names, seeds and machine."""
    runs: list[Run]
    label: str = ""
    """Name and layers, and what else it takes to tell it from the other methods of its `Study`."""

    @property
    def key(self) -> str:
        """Equal for runs that differ by seed and machine alone, finished or not."""
        return json.dumps(self.settings, sort_keys=True) if self.runs[0].config else self.runs[0].name

    @property
    def title(self) -> str:
        """The name with the options."""
        return f"{self.name} [{self.options}]" if self.options else self.name

    @property
    def finished(self) -> bool:
        """Whether the results are final."""
        return self.runs[0].finished

    @property
    def score(self) -> Score:
        """What its runs are compared by: top-1 of classes, or of kNN where there are none."""
        return scores_of(self.runs[0].metrics)[0]

    def by_seed(self, which: str = "best", metric: str | None = None) -> dict[str, float]:
        """A metric, by default its `score`, "best" or "last" by seed; the mean of several runs of one seed.

        That of a student before training does not count.
        """
        values: dict[str, list[float]] = {}
        name = metric or self.score.metric
        for run in self.runs:
            known = (row[name] for row in run.metrics if row.get("epoch") and name in row)
            if scores := [value for value in known if math.isfinite(value)]:
                start = run.starts[0] if run.starts else {}
                seed = str(start.get("seed", run.config.get("seed_everything", run.name)))
                values.setdefault(seed, []).append(max(scores) if which == "best" else scores[-1])
        return {seed: fmean(scores) for seed, scores in values.items()}

    @property
    def top1(self) -> float:
        """Mean of the best `score` over the seeds, percent; NaN where nothing was validated."""
        values = self.by_seed().values()
        return fmean(values) if values else math.nan

    @property
    def epochs(self) -> str:
        """Completed epochs, and of how many where the run has not finished."""
        done = sorted({run.epochs for run in self.runs})
        text = str(done[0]) if len(done) == 1 else f"{done[0]} to {done[-1]}"
        planned = self.settings.get("trainer.max_epochs", "?")
        return text if self.finished else f"{text} of {planned}, not finished"


def make_method(run: Run) -> Method:
    """The method of one run."""
    return Method(*describe(run.config), settings=_settings(run), runs=[run])


def describe(config: dict[str, Any]) -> tuple[str, str, str, str]:
    """Name, options, layers and weights of a configuration's method.

    Raises `AttributeError`, `KeyError`, `TypeError` or `ValueError` for what `fit` would not have taken.
    """
    model = config.get("model")
    if not isinstance(model, dict):
        return "unknown method", "", "", ""
    alpha = model.get("alpha")  # null is the default: above 0 with a teacher
    given = {
        name: term
        for name, term in (model.get("terms") or {}).items()
        if term is None or not _is_as_written(name, term, alpha)
    }
    terms = {name: term for name, term in given.items() if term is not None}
    one = model.get("teacher") or (terms and not model.get("teachers"))
    distils = bool(one) if alpha is None else alpha > 0
    losses = [_loss(term) for term in terms.values()]
    classes = [loss["class_path"].rsplit(".", 1)[-1] for loss in losses]
    without = "" if (distils and "kd" not in given) or SOFTKD in classes else f" without {SOFTKD}"
    without += " without cross-entropy" if "ce" in given and given["ce"] is None else ""
    if not _has_labels(config.get("data")):
        without = " without labels"  # nor, therefore, either of these
    if not terms:
        return PLAIN if SOFTKD in without else f"{SOFTKD}{without}", "", "", ""
    kinds = [
        f"{kind} of {term['teacher']}" if term.get("teacher") else kind
        for kind, term in zip(classes, terms.values(), strict=True)
    ]
    names = [
        f"{kind} ({name})" if kinds.count(kind) > 1 else kind for name, kind in zip(terms, kinds, strict=True)
    ]
    options = [_arguments(loss) for loss in losses]
    return (
        " + ".join(names) + without,
        "; ".join(options) if any(options) else "",
        "; ".join(filter(None, map(_blocks, terms.values()))),  # what reads no maps has none
        "; ".join(map(_weight, terms.values())),
    )


def _has_labels(data: Any) -> bool:
    """Whether training knows classes, by the config of its data."""
    if not isinstance(data, dict):
        return True
    given = data.get("init_args")
    hidden = isinstance(given, dict) and given.get("labels") is False
    return not (hidden or str(data.get("class_path")).endswith(".UnlabelledFolder"))


def teachers_of(method: Method) -> str:
    """The models that teach, by name; "" without one."""
    key = re.compile(r"model\.(teacher|teachers\..+\.backbone)\.init_args\.name")
    return ", ".join(value for name, value in method.settings.items() if key.fullmatch(name))


# Of the terms that alpha writes: class, argument, its value there, and where it is left out.
_WRITTEN = {"ce": ("CrossEntropy", "label_smoothing", 0.1, 0.0), "kd": (SOFTKD, "temperature", 1.0, 1.0)}


def _is_as_written(name: str, term: dict[str, Any], alpha: float | None) -> bool:
    """Whether a `ce` or `kd` of the config is the one that alpha would write in its place."""
    if name not in _WRITTEN or alpha is None or not isinstance(term.get("weight"), int | float):
        return False
    kind, argument, value, default = _WRITTEN[name]
    loss, share = _loss(term), alpha if name == "kd" else 1 - alpha
    return (
        str(loss["class_path"]).startswith("distill_dynamics.")
        and str(loss["class_path"]).endswith(f".{kind}")
        and (loss.get("init_args") or {}).get(argument, default) == value
        and math.isclose(term["weight"], share)
        and term.get("budget") is None
    )


def _loss(term: dict[str, Any]) -> dict[str, Any]:
    loss = term.get("loss")
    return loss if isinstance(loss, dict) and "class_path" in loss else {"class_path": loss}


def _arguments(given: dict[str, Any]) -> str:
    """Those that are not what they are by default, "components: random"."""
    usual = defaults_of(str(given["class_path"]))
    arguments = [(k, v) for k, v in (given.get("init_args") or {}).items() if k not in usual or usual[k] != v]
    texts = [v if isinstance(v, str) else json.dumps(v, default=str) for _, v in arguments]
    return ", ".join(f"{name}: {text}" for (name, _), text in zip(arguments, texts, strict=True))


def _weight(term: dict[str, Any]) -> str:
    """A number, or a schedule: "Until [start: 0.2, end: 0.5]"; with gate and budget: ", PhaseGate"."""
    weight, gate, budget = term.get("weight", 0.2), term.get("gate"), term.get("budget")
    return ", ".join(
        [
            _instance(weight) if isinstance(weight, dict) else f"{weight:g}",
            *([] if gate is None else [_instance(gate)]),
            *([] if budget is None else [f"budget {budget:g}"]),
        ]
    )


def _instance(given: dict[str, Any]) -> str:
    name, arguments = given["class_path"].rsplit(".", 1)[-1], _arguments(given)
    return f"{name} [{arguments}]" if arguments else name


def _blocks(term: dict[str, Any]) -> str:
    first, last, pairs = term.get("first"), term.get("last"), term.get("pairs")
    parts = [f"F {first}"] if first else []
    parts += [f"L {last}"] if last else []
    if pairs in ("all", "depth"):
        parts.append(pairs)
    elif pairs:
        parts.append("pairs " + " ".join(f"{student}-{teacher}" for student, teacher in pairs))
    return ", ".join(parts)


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Dotted keys → values as text. What is null or empty is left out."""
    settings = {}
    for key, value in config.items():
        if isinstance(value, dict):
            settings.update(flat(value, f"{prefix}{key}."))
        elif value not in (None, []):
            settings[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value, default=str)
    return settings


def is_below(key: str, roots: tuple[str, ...]) -> bool:
    """Whether a dotted key is one of the roots or lies under one."""
    return any(key == root or key.startswith(f"{root}.") for root in roots)


def all_settings(run: Run) -> dict[str, str]:
    """The flat configuration without what only names the run."""
    return {key: value for key, value in flat(run.config).items() if not is_below(key, _NAMES)}


def differing(was: dict[str, Any], now: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """What two configurations of one run set otherwise, by key, beside names and the machine."""
    then, here = flat(was), flat(now)
    return {
        key: (then.get(key, "null"), here.get(key, "null"))
        for key in {**here, **then}
        if then.get(key) != here.get(key) and not is_below(key, (*_NAMES, *_MACHINE))
    }


def _settings(run: Run) -> dict[str, str]:
    settings = {
        key: value
        for key, value in flat(run.config).items()
        if not is_below(key, _NO_METHOD) and (key.rpartition(".")[2], value) not in _AS_BEFORE
    }
    callbacks = (run.config.get("trainer") or {}).get("callbacks")
    if isinstance(callbacks, list) and all(
        isinstance(callback, dict) and callback.get("class_path") in _WATCHING for callback in callbacks
    ):
        settings.pop("trainer.callbacks", None)
    facts = {"images a step": run.last_start.get("images_a_step"), "data": run.data}
    return settings | {name: str(value) for name, value in facts.items() if value is not None}
