"""The runs of a report as one study: its methods, and the baseline that each is compared with."""

from collections import Counter
from collections.abc import Sequence

from distill_dynamics.report.contrasts import make_contrast, over_plain
from distill_dynamics.report.methods import Method, make_method, teachers_of
from distill_dynamics.report.records import Run
from distill_dynamics.text import counted, listed


class Study:
    """Made once a report; tables, findings and figures read it."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = list(runs)
        self.methods = _methods(self.runs)
        self.contrasts = [make_contrast(method, self.methods) for method in self.methods]
        over = [over_plain(method, self.methods) for method in self.methods]
        self.over_plain = [contrast for contrast in over if contrast and contrast not in self.contrasts]
        """What the methods gain over plain training, where `contrasts` does not tell."""
        self.key_of = {run.name: method.key for method in self.methods for run in method.runs}
        """Run's name → key of its method; analysed models have none."""

    @property
    def finished(self) -> list[Method]:
        """The methods whose results are final and known."""
        return [method for method in self.methods if method.finished and method.by_seed()]

    def listed(self, names: Sequence[str]) -> str:
        """Names of runs in a sentence; a method stands for its runs, where all of several are named."""
        words = dict.fromkeys(names)
        for method in self.methods:
            own = [run.name for run in method.runs]
            if len(own) > 1 and words.keys() >= {*own}:
                words = dict.fromkeys(method.label if name in own else name for name in words)
        return listed([*words])

    def first_of_each_method(self, runs: Sequence[Run]) -> list[Run]:
        """Of these runs the first of each method, and those of no method."""
        firsts: dict[str, Run] = {}
        for run in runs:
            firsts.setdefault(self.key_of.get(run.name, run.label), run)
        return list(firsts.values())


def _methods(runs: Sequence[Run]) -> list[Method]:
    """The runs of `fit`, sorted into methods in order of their first run."""
    methods: dict[str, Method] = {}
    for run in runs:
        if run.kind == "fit":
            method = make_method(run)
            # An unfinished run would pull the mean down; without a model's settings nothing is known.
            alone = not run.finished or not run.config.get("model")
            first = methods.setdefault(f"run {run.name}" if alone else method.key, method)
            if first is not method:
                first.runs.append(run)
    for method, label in zip(methods.values(), _labels([*methods.values()]), strict=True):
        method.label = label
    return list(methods.values())


def _labels(methods: Sequence[Method]) -> list[str]:
    """The shortest name of each that no other has: with layers, options, β, epochs, teacher or runs."""
    short = [_with_layers(m.name, m.layers) for m in methods]
    titled = [_with_layers(m.title, m.layers) for m in methods]
    weighted = [
        f"{name}, β {m.weight}" if m.weight else name for name, m in zip(titled, methods, strict=True)
    ]
    epochs = [counted(m.epochs, "epoch") if m.finished else m.epochs for m in methods]
    teachers = [teachers_of(m) or "no teacher" for m in methods]
    names = [_run_names(m) for m in methods]
    ways = [short, titled, weighted]
    for base, details in ((weighted, epochs), (weighted, teachers), (short, names)):
        ways.append([f"{name} ({detail})" for name, detail in zip(base, details, strict=True)])
    labels = dict[int, str]()
    for way in ways:
        counts = Counter(way)
        for number, name in enumerate(way):
            if counts[name] == 1 or way is ways[-1]:
                labels.setdefault(number, name)
    return [labels[number] for number in range(len(methods))]


def _with_layers(name: str, layers: str) -> str:
    """Such as "SpectralKD L 1", and "TokenKD without labels, L 1"."""
    return f"{name}{',' if ' without ' in name else ''} {layers}" if layers else name


def _run_names(method: Method) -> str:
    first, *others = (run.name for run in method.runs)
    return f"{first} and {len(others)} more" if len(others) > 1 else ", ".join([first, *others])
