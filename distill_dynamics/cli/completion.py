"""The parser of all commands at once, of which a shell that completes words is told."""

from __future__ import annotations

from typing import Any

from distill_dynamics.cli import run_function
from distill_dynamics.cli.fit import DistillCLI
from distill_dynamics.cli.help import COMMANDS, PLAIN_COMMANDS
from distill_dynamics.cli.parser import OneLineParser


class CompletionCLI(DistillCLI):
    """LightningCLI with the parsers of the other commands beside its own; it ends once it has parsed."""

    def setup_parser(self, *args: Any) -> None:
        """Add them."""
        super().setup_parser(*args)
        program: Any = self.parser
        for choice in program._subcommands_action._choices_actions:
            choice.help = COMMANDS[choice.dest]
        others = {**run_function.parsers(), "cache-teacher": OneLineParser(add_help=False)}
        for command, parser in others.items():
            program._subcommands_action.add_subcommand(command, parser, help=PLAIN_COMMANDS[command])
