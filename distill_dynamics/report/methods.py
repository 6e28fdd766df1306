"""What was tried: from configurations to methods, their seeds, and the baseline each is compared with."""

import json
import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from distill_dynamics.report.method_names import described
from distill_dynamics.report.records import Run, counted, listed

# Keys that name a run, place it, watch it or repeat it, and do not change what it is an experiment of.
_ONLY_NAMES = ("name", "runs_dir", "ckpt_path", "wandb")
_NO_METHOD = (
    *_ONLY_NAMES,
    "seed_everything",
    "probe",
    "checkpoint_every_n_epochs",
    "data.init_args.seed",
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
# Callbacks that measure beside the training, and leave it as it is.
_WATCHING = ("distill_dynamics.callbacks.EMA", "distill_dynamics.callbacks.GradientConflict")
# Settings that run.json holds, not config.yaml: unknown where it cannot be read.
_FACTS = ("images a step", "data")
_TERMS = ("model.terms",)
_DISTILLATION = (*_TERMS, "model.teacher", "model.alpha", "model.temperature")


@dataclass(frozen=True)
class Score:
    """Top-1 of one method, percent."""

    mean: float
    """Mean over seeds."""
    sd: float | None
    """Standard deviation over seeds (n - 1); None for one seed."""

    def __str__(self) -> str:
        return f"{self.mean:.2f}" + ("" if self.sd is None else f" ± {self.sd:.2f}")


@dataclass(frozen=True)
class Method:
    """Finished runs that differ by their seed alone, or one run that has not finished."""

    name: str
    """As in the paper's Table 1: "SoftKD", "SpectralKD", "SpectralKD + ProjectorKD", "no distillation"."""
    layers: str
    """"F 2, L 1": the first two and the last student block; terms are parted by ";"."""
    weight: str
    """β of each term."""
    runs: list[Run]
    settings: dict[str, str]
    """What makes it the experiment it is: the flat configuration without names, seeds and machine."""

    @property
    def finished(self) -> bool:
        """Whether the results are final."""
        return self.runs[0].finished

    def by_seed(self, which: str, metric: str = "val/acc1") -> dict[str, float]:
        """Top-1 "best" or "last" by seed, percent; the mean of several runs of one seed."""
        values: dict[str, list[float]] = {}
        for run in self.runs:
            if scores := [row[metric] for row in run.metrics if math.isfinite(row.get(metric, math.nan))]:
                values.setdefault(_seed(run), []).append(max(scores) if which == "best" else scores[-1])
        return {seed: statistics.fmean(found) for seed, found in values.items()}

    def score(self, which: str = "best", metric: str = "val/acc1") -> Score | None:
        """Top-1 over the seeds; None where nothing was validated."""
        values = list(self.by_seed(which, metric).values())
        if not values:
            return None
        return Score(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)

    @property
    def epochs(self) -> str:
        """Completed epochs, and of how many where the run has not finished."""
        done = sorted({run.epochs for run in self.runs})
        shown = str(done[0]) if len(done) == 1 else f"{done[0]} to {done[-1]}"
        planned = self.settings.get("trainer.max_epochs", "?")
        return shown if self.finished else f"{shown} of {planned}, not finished"


def methods(runs: Sequence[Run]) -> list[Method]:
    """The runs of `fit` among `runs`, sorted into methods, in order of their first run."""
    found: dict[Any, Method] = {}
    for run in runs:
        if run.kind != "fit":
            continue
        settings = _settings(run)
        # An unfinished run would pull its method's mean down; without a model's settings nothing is known.
        alone = not run.finished or not run.config.get("model")
        key = run.name if alone else json.dumps(settings, sort_keys=True)
        if key in found:
            found[key].runs.append(run)
        else:
            found[key] = Method(*described(run.config), [run], settings)
    return list(found.values())


def methods_by_run(runs: Sequence[Run]) -> dict[str, str]:
    """Name of a run of `fit` → what it is a run of, finished or not: equal for those that differ by seed."""
    return {
        run.name: json.dumps(method.settings, sort_keys=True) if run.config else run.name
        for method in methods(runs)
        for run in method.runs
    }


def labels(found: Sequence[Method]) -> list[str]:
    """What a sentence calls each method: name and layers; where needed β, epochs, teacher or runs."""
    short = [f"{m.name} {m.layers}".strip() for m in found]
    weighted = [f"{name}, β {m.weight}" if m.weight else name for name, m in zip(short, found, strict=True)]
    epochs = [counted(m.epochs, "epoch") if m.finished else m.epochs for m in found]
    teachers = [m.settings.get("model.teacher.init_args.name", "no teacher") for m in found]
    ways = [
        short,
        weighted,
        [f"{name} ({done})" for name, done in zip(weighted, epochs, strict=True)],
        [f"{name} ({teacher})" for name, teacher in zip(weighted, teachers, strict=True)],
        [f"{name} ({_runs(m)})" for name, m in zip(short, found, strict=True)],
    ]
    counts = [Counter(names) for names in ways]
    return [
        next(
            (names[i] for names, count in zip(ways, counts, strict=True) if count[names[i]] == 1), ways[-1][i]
        )
        for i in range(len(found))
    ]


def _runs(method: Method) -> str:
    first, *others = (run.name for run in method.runs)
    return f"{first} and {len(others)} more" if len(others) > 1 else ", ".join([first, *others])


def baseline(method: Method, found: Sequence[Method]) -> Method | None:
    """What `method` is measured against: SoftKD, else plain training, all else equal; None without one."""
    if not method.finished:
        return None
    for name in ("SoftKD", "no distillation"):
        for other in found:
            alike = not unknown(method, other) and not differences(method, other)
            if other.name == name and other.finished and alike:
                return other
    return None


def baselines(found: Sequence[Method]) -> list[Method]:
    """The methods that another one is measured against."""
    used = [base for method in found if (base := baseline(method, found)) and base is not method]
    return [method for method in found if any(method is base for base in used)]


def differences(a: Method, b: Method) -> list[str]:
    """Settings in which two methods differ beside the method itself: terms, or all of the distillation.

    What is `unknown` of one of them is not told as a difference.
    """
    lacking = {what for _, what in unknown(a, b)}
    if "settings" in lacking:
        return []
    free = (*(_DISTILLATION if "no distillation" in (a.name, b.name) else _TERMS), *lacking)
    keys = [key for key in {**a.settings, **b.settings} if not _below(key, free)]
    return [key for key in keys if a.settings.get(key) != b.settings.get(key)]


def unknown(a: Method, b: Method) -> list[tuple[Method, str]]:
    """What is not known of one of two methods, and so may differ: "settings", or a fact of run.json."""
    found = []
    for one, other in ((a, b), (b, a)):
        if not one.runs[0].config.get("model"):
            found.append((one, "settings"))
        else:
            found += [(one, fact) for fact in _FACTS if fact in other.settings and fact not in one.settings]
    return found


def baseline_warnings(runs: Sequence[Run]) -> list[str]:
    """Which methods have no baseline although SoftKD is there with other settings, and what differs."""
    found = methods(runs)
    named = list(zip(found, labels(found), strict=True))
    candidates = [(method, name) for method, name in named if method.name == "SoftKD" and method.finished]
    without: dict[str, list[str]] = {}
    for method, name in named:
        if not candidates or not method.finished or method.name == "SoftKD" or baseline(method, found):
            continue
        other, other_name = min(candidates, key=lambda pair: len(differences(method, pair[0])))
        keys, lacking = differences(method, other), unknown(method, other)
        how = []
        if own := [what for who, what in lacking if who is method]:
            how.append(f"its {listed(own)} are not known")
        if its := [what for who, what in lacking if who is other]:
            how.append(f"the {listed(its)} of {other_name} are not known")
        if keys:
            shown = ", ".join(
                f"{key} ({method.settings.get(key, 'none')}, not {other.settings.get(key, 'none')})"
                for key in keys[:3]
            )
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            how.append(f"it differs from {other_name} in {shown}{more}")
        without.setdefault(", and ".join(how), []).append(name)
    return [
        f"No baseline for {listed(names)}: {how if len(names) == 1 else f'of each, {how}'}."
        for how, names in without.items()
    ]


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Dotted keys → values as text. What is null or empty is left out."""
    found = {}
    for key, value in config.items():
        if isinstance(value, dict):
            found.update(flat(value, f"{prefix}{key}."))
        elif value not in (None, []):
            found[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value, default=str)
    return found


def named_settings(run: Run) -> dict[str, str]:
    """The flat configuration without what only names the run."""
    return {key: value for key, value in flat(run.config).items() if not _below(key, _ONLY_NAMES)}


def _settings(run: Run) -> dict[str, str]:
    settings = {key: value for key, value in flat(run.config).items() if not _below(key, _NO_METHOD)}
    callbacks = (run.config.get("trainer") or {}).get("callbacks")
    if isinstance(callbacks, list) and all(_watches(callback) for callback in callbacks):
        settings.pop("trainer.callbacks", None)
    start = run.starts[-1] if run.starts else {}
    found = dict(zip(_FACTS, (start.get("images_a_step"), run.data), strict=True))
    return settings | {name: str(value) for name, value in found.items() if value is not None}


def _watches(callback: Any) -> bool:
    return isinstance(callback, dict) and callback.get("class_path") in _WATCHING


def _below(key: str, roots: Sequence[str]) -> bool:
    return any(key == root or key.startswith(f"{root}.") for root in roots)


def _seed(run: Run) -> str:
    start = run.starts[0] if run.starts else {}
    return str(start.get("seed", run.config.get("seed_everything", run.name)))
