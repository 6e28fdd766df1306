"""`dashboard`: its options, and what `report/` is asked for."""

from __future__ import annotations

from typing import Any

from distill_dynamics.cli.parser import OneLineParser
from distill_dynamics.cli.tools import tool_parser


def make_parser() -> OneLineParser:
    """The options."""
    parser = tool_parser("dashboard", "--entity E --project P", "--entity my-team --project distill_dynamics")
    parser.add_argument("--entity", required=True, help="W&B user or team")
    parser.add_argument("--project", required=True, help="W&B project of the runs")
    parser.add_argument(
        "--name",
        default="Distillation dynamics",
        help="of the workspace; one of that name is updated (default: Distillation dynamics)",
    )
    return parser


def run(settings: Any, command: str) -> None:
    """Make or update the workspace, and print its address."""
    from distill_dynamics.report.dashboard import write_dashboard  # needs the extra of the same name

    print(write_dashboard(settings.entity, settings.project, settings.name))
