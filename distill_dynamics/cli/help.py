"""What `--help` says: Lightning's parser describes Lightning, this describes the program."""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
from argparse import SUPPRESS, Action
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NoReturn

import distill_dynamics
from distill_dynamics.errors import nearest
from distill_dynamics.runs.directory import PROGRAM

COMMANDS = {
    "fit": "Train a student from a teacher (or, without one, a teacher), and watch its representations.",
    "validate": "Measure a student's top-1, top-5 and loss on the validation images.",
    "test": "The same on the test images, for a DataModule that has others than for validation.",
    "predict": "Write a student's answers for the validation images, or a folder of others, to a CSV file.",
}
PLAIN_COMMANDS = {
    "analyze": "Profile any models on the same images, and write Profiles, tables, figures and a report.",
    "report": "Show runs, analyses and published curves on one page, and their figures as PNG and PDF.",
    "export": "Write a run's best student as a folder for timm and the Hugging Face hub, and as ONNX.",
    "dashboard": "Make or update a W&B workspace for the runs of a project.",
    "convert": "Put an image folder into chunks, for object storage and data larger than a disk.",
    "cache-teacher": "Run a teacher once over fixed views of each training image, and store its answers.",
}
"""Those that train nothing: `tools.py`, and `CacheTeacherCLI`."""
GROUPS = {
    "model": "model: student, teacher, loss, optimiser (see --model.optimizer.help AdamW)",
    "data": "data: a DataModule and its settings (see --data.help ImageFolder)",
    "probe": "probe: watching the representations",
    "wandb": "wandb: where W&B's record of the run goes",
    "trainer": "trainer: Lightning's Trainer",
}
OPTIONS = {
    "--config": "YAML file, or packaged:NAME for one that comes with the package; a later one overrides an "
    "earlier one, and options override both",
    "--print_config": "print the whole configuration as YAML and exit (skip_default: only what was changed)",
    "--seed_everything": "seed of the weights, the order, the augmentation and dropout",
    "--ckpt_path": "a checkpoint file, `last` or `best` of the run whose config.yaml is given as --config; "
    "for fit also `auto`: `last` of the run of that --name, begun where there is none",
    "--data": "FashionMNISTSample, FashionMNIST, CIFAR10, CIFAR100, ImageFolder or StreamedImageFolder",
    "--weights_only": SUPPRESS,  # always
    "--return_predictions": SUPPRESS,
}
ONLY_FOR = {
    "checkpoint_every_n_epochs": "fit",
    "probe": "fit",
    "wandb": "fit",
    "predictions": "predict",
    "images": "predict",
}
"""Options that the other commands accept, since they read the config.yaml of a run, and have no use for."""

COMPARISON = {
    "--baselines": "train the same student by SoftKD and without a teacher as well, and write a page that "
    "compares them; given again it goes on where it was stopped",
    "--seeds": "one run for each of so many seeds, from seed_everything on, and a page of all",
}
"""Options of fit that are no keys of a configuration: `comparison.py` takes them off the command line."""

DESCRIPTION = "Distil Vision Transformers, and watch why the transfer works or fails."

PARSER_KWARGS = {
    "prog": PROGRAM,
    **{
        command: {
            "description": text,
            "usage": f"{PROGRAM} {command} --config FILE ... [--KEY VALUE ...]",
        }
        for command, text in COMMANDS.items()
    },
}
"""LightningCLI's `parser_kwargs`."""
NOT_FOR_CACHE_TEACHER = {"ckpt_path", "images", "name", "predictions", "runs_dir"}
"""Options that it accepts as `fit` and `predict` do, and has no use for."""


CACHE_TEACHER = {
    "description": f"{PLAIN_COMMANDS['cache-teacher']} Training then goes without it: "
    "fit --model.teacher_cache DIR. Of several teachers each is stored in the folder that its `cache` names.",
    "usage": f"{PROGRAM} cache-teacher --config FILE [--out DIR]\n       [--verify] [--KEY VALUE ...]",
    "epilog": f"Example: {PROGRAM} cache-teacher --config X.yaml --data.init_args.views 10 --out cache",
}


def describe(commands: Mapping[str, Any], hidden: Collection[str]) -> None:
    """Give the parsers of the commands the texts above, the Trainer's options last, `hidden` not at all."""
    for command, parser in commands.items():
        for action in parser._actions:
            for option in action.option_strings:
                action.help = OPTIONS.get(option, action.help)
            if action.dest.startswith("trainer."):  # Lightning's own texts are pages long
                action.help = re.split(r"(?<=[a-z)`])\. |\s*Default: ", action.help or "")[0].rstrip(".")
            if (
                action.dest in hidden
                or action.dest.endswith(".help")
                or type(action).__name__ == "_ActionConfigLoad"
                or ONLY_FOR.get(action.dest.split(".")[0], command) != command
            ):
                action.help = SUPPRESS
        for group, title in {command: "checkpoint", **GROUPS}.items():
            parser.groups[group].title = title
            parser._action_groups.remove(parser.groups[group])
            parser._action_groups.append(parser.groups[group])


class NoKey(Action):
    """An option that the parser knows for its help alone."""

    def __init__(self, option_strings: Sequence[str], dest: str, **kwargs: Any) -> None:
        super().__init__(option_strings, SUPPRESS, default=SUPPRESS, **kwargs)

    def __call__(self, *args: Any) -> None:
        """Nothing."""


def answer(words: Sequence[str]) -> NoReturn:
    """Say what there is to a command line that names no command: help, the version, or what is wrong."""
    known = {**COMMANDS, **PLAIN_COMMANDS}
    first = words[0] if words else ""
    if not words or first in ("-h", "--help"):
        _print_help(known)
        raise SystemExit(0 if words else 2)
    if first == "--version":
        print(f"distill_dynamics {distill_dynamics.__version__}")
        raise SystemExit(0)
    if first.startswith("-"):
        line = f"the command ({', '.join(known)}) comes first, before its options"
    else:
        line = f"no command {first!r}{nearest(first, known)}"
    print(f"error: {line}", file=sys.stderr)
    raise SystemExit(2)


def _print_help(commands: Mapping[str, str]) -> None:
    width = min(100, shutil.get_terminal_size().columns - 2)
    print(f"usage: {PROGRAM} COMMAND [--OPTION VALUE ...]\n\n{DESCRIPTION}\n\ncommands:")
    for command, text in commands.items():
        print(textwrap.fill(f"{command:<15}{text}", width, initial_indent="  ", subsequent_indent=17 * " "))
    print("\nCOMMAND --help shows the options of a command, --version the version.")
    print(f"Example: {PROGRAM} fit --config packaged:quickstart")
