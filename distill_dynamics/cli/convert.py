"""`convert`: its options, and what `data/` is asked for."""

from __future__ import annotations

import os
from typing import Any

from distill_dynamics.cli.parser import OneLineParser
from distill_dynamics.cli.tools import tool_parser


def make_parser() -> OneLineParser:
    """The options."""
    parser = tool_parser(
        "convert",
        "--data-dir DIR --out DIR_OR_URL [--size N] [--OPTION VALUE ...]",
        "--data-dir imagenet --out s3://bucket/imagenet",
    )
    parser.add_argument(
        "--data-dir",
        required=True,
        metavar="DIR",
        help="holds train/<class>/<image> and val/<class>/<image>, as for ImageFolder",
    )
    parser.add_argument(
        "--out",
        required=True,
        metavar="DIR_OR_URL",
        help="a new folder, or a place in object storage (s3://, gs://)",
    )
    parser.add_argument(
        "--size",
        type=int,
        metavar="N",
        help="resize images whose shorter side is longer to N pixels, and encode them anew; smaller ones are "
        "kept as they are (default: all files are stored as they are)",
    )
    parser.add_argument(
        "--quality", type=int, default=95, metavar="N", help="of the JPEG files of --size (default: 95)"
    )
    parser.add_argument(
        "--chunk-mb", type=float, default=64, metavar="X", help="size of a chunk, 10^6 bytes (default: 64)"
    )
    parser.add_argument(
        "--num-workers", type=int, metavar="N", help="processes that read and resize (default: one a core)"
    )
    parser.add_argument("--skip-unreadable", action="store_true", help="leave out images that cannot be read")
    return parser


def run(settings: Any, command: str) -> None:
    """Write the chunks."""
    from distill_dynamics.data.streaming.convert import convert  # needs the extra `streaming`

    convert(
        settings.data_dir,
        settings.out,
        size=settings.size,
        quality=settings.quality,
        chunk_mb=settings.chunk_mb,
        num_workers=os.cpu_count() or 1 if settings.num_workers is None else settings.num_workers,
        skip_unreadable=settings.skip_unreadable,
    )
