"""The commands that need no LightningCLI, as they train nothing. Only the one that is meant is imported."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from typing import Any

from distill_dynamics.cli.help import PLAIN_COMMANDS, PROGRAM
from distill_dynamics.cli.parser import OneLineParser

TOOLS = ("analyze", "report", "dashboard", "convert")
"""Each is a module beside this one, with `make_parser()` and `run(settings, command)`."""


def _module(command: str) -> Any:
    return import_module(f"{__package__}.{command}")


def run(args: Sequence[str]) -> None:
    """Run the command that `args` begin with."""
    command, *options = args
    # To argparse a range such as -5,5 is an option, unless there is a space in it.
    options = [f" {word}" if re.match(r"-[^-,]+,", word) else word for word in options]
    module = _module(command)
    settings = module.make_parser().parse_args(options)
    try:
        module.run(settings, shlex.join([*PROGRAM.split(), *args]))
    except KeyboardInterrupt:
        print(f"\nerror: {command} was stopped", file=sys.stderr)
        raise SystemExit(130) from None


def parsers() -> dict[str, OneLineParser]:
    """The parser of each command, for a shell that completes them."""
    return {command: _module(command).make_parser() for command in TOOLS}


def tool_parser(command: str, usage: str, example: str) -> OneLineParser:
    """A parser with the texts of a command, to which the command adds its options."""
    parser = OneLineParser(
        prog=f"{PROGRAM} {command}",
        usage=f"{PROGRAM} {command} {usage}",
        description=PLAIN_COMMANDS[command],
        epilog=f"Example: {PROGRAM} {command} {example}",
        formatter_class=partial(argparse.HelpFormatter, max_help_position=28),
    )
    parser.add_argument("--config", action="config", metavar="FILE", help="YAML file that holds options")
    for action in parser._actions:
        if "--print_config" in action.option_strings:
            action.help = argparse.SUPPRESS
    return parser
