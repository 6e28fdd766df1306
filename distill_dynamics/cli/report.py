"""`report`: its options, and what `report/` is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distill_dynamics.cli.parser import OneLineParser
from distill_dynamics.cli.tools import tool_parser
from distill_dynamics.errors import UserError
from distill_dynamics.report.page import write_report


def make_parser() -> OneLineParser:
    """The options."""
    parser = tool_parser(
        "report",
        "RUN [RUN ...] --out FILE.html [--figures DIR]",
        "runs/softkd-1 runs/spectralkd-1 --out report.html",
    )
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="a run directory of fit, a folder of analyze, a CSV file with a published entropy evolution "
        "(header Model/Epoch,Layer_1,...), or a folder of such files",
    )
    parser.add_argument("--out", required=True, metavar="FILE", help="the page: one file, no network needed")
    parser.add_argument(
        "--figures",
        metavar="DIR",
        help="folder for the figures as PNG and PDF (default: FILE_figures, beside the page)",
    )
    return parser


def run(settings: Any, command: str) -> None:
    """Write the page and its figures."""
    out = Path(settings.out)
    if out.is_dir():
        raise UserError(f"--out: {out} is a folder; give the name of a file, such as {out / 'report.html'}")
    figures = Path(settings.figures) if settings.figures else out.with_name(f"{out.stem}_figures")
    write_report([Path(run) for run in settings.runs], out, figures)
    print(f"{out}, figures in {figures}")
