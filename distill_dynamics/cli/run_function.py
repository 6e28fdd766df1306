"""The commands that train nothing: functions, whose parameters and docstrings are options and help."""

from __future__ import annotations

import re
import shlex
import sys
from argparse import SUPPRESS
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, get_args, get_origin

from distill_dynamics.cli.help import PLAIN_COMMANDS, PROGRAM
from distill_dynamics.cli.packaged import with_packaged
from distill_dynamics.cli.parser import OneLineParser

TOOLS = {
    "analyze": "--model NAME ... --out DIR [OPTIONS]",
    "report": "RUN ... --out FILE.html [--figures DIR]",
    "export": "RUN --out DIR [OPTIONS]",
    "dashboard": "--entity TEAM --project PROJECT",
    "convert": "--data_dir DIR --out DIR [OPTIONS]",
}
"""How each is used. It is the function of its name in `analyze.py`, `export.py` or `commands.py`, here."""

EXAMPLES = {
    "analyze": "--model cait_s24_224 --pretrained --images photos --out analysis",
    "report": "runs/softkd-1 runs/spectralkd-1 --out report.html",
    "export": "runs/image_folder-1 --out model --int8",
    "dashboard": "--entity my-team --project distill_dynamics",
    "convert": "--data_dir imagenet --out s3://bucket/imagenet",
}


def run(words: Sequence[str]) -> None:
    """Run the command that `words` begin with."""
    command, *options = map(_spelling, with_packaged(words))
    function = _function(command)
    parser = _parser(command, function)
    settings = parser.instantiate_classes(parser.parse_args(options))
    del settings.config
    record = {"command": shlex.join([*PROGRAM.split(), *words])} if command == "analyze" else {}
    try:
        function(**vars(settings), **record)
    except KeyboardInterrupt:
        print(f"\nerror: {command} was stopped", file=sys.stderr)
        raise SystemExit(130) from None


def parsers() -> dict[str, OneLineParser]:
    """The parser of each command, for a shell that completes them."""
    return {command: _parser(command, _function(command)) for command in TOOLS}


def _spelling(word: str) -> str:
    """`--n_images` for `--n-images`, as earlier versions had it; " -5,5", no option to argparse, for -5,5."""
    if re.match(r"-[^-,]+,", word):
        return f" {word}"
    option, equals, value = word.partition("=")
    return f"--{option[2:].replace('-', '_')}{equals}{value}" if word.startswith("--") else word


def _function(command: str) -> Callable[..., None]:
    module = command if command in ("analyze", "export") else "commands"
    return getattr(import_module(f"distill_dynamics.cli.{module}"), command)


def _parser(command: str, function: Callable[..., None]) -> OneLineParser:
    parser = OneLineParser(
        prog=f"{PROGRAM} {command}",
        usage=f"{PROGRAM} {command} {TOOLS[command]}",
        description=PLAIN_COMMANDS[command],
        epilog=f"Example: {PROGRAM} {command} {EXAMPLES[command]}",
    )
    parser.add_argument("--config", action="config", help="YAML file that holds options")
    parser.add_function_arguments(function, as_group=False, as_positional=True, skip={"command"})
    for action in parser._actions:
        if action.dest.endswith(("print_config", ".help")):
            action.help = SUPPRESS
        hint: Any = getattr(action, "_typehint", None)
        lists = [one for one in (hint, *get_args(hint)) if get_origin(one) is list]
        if hint is bool:
            action.nargs, action.const = "?", True  # also without a value
        if lists:  # `--model A B`, where jsonargparse has `--model '[A, B]'`
            action.nargs, action.metavar = "+", action.dest.upper()
            action._typehint = get_args(lists[0])[0]  # type: ignore[attr-defined]
    return parser
