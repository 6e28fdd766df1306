"""`report`, `dashboard` and `convert`."""

from __future__ import annotations

import os
from pathlib import Path

from distill_dynamics.errors import UserError


def report(runs: list[str], *, out: str, figures: str | None = None) -> None:
    """Write a page about runs, and its figures.

    Args:
        runs: run directories of fit, folders of analyze, CSV files with a published entropy evolution (header
            Model/Epoch,Layer_1,...), or folders of such files
        out: the page: one file, no network needed
        figures: folder for the figures as PNG and PDF (default: FILE_figures, beside the page)
    """
    from distill_dynamics.report.page import write_report

    page = Path(out)
    if page.is_dir():
        raise UserError(f"--out: {page} is a folder; give the name of a file, such as {page / 'report.html'}")
    folder = Path(figures) if figures else page.with_name(f"{page.stem}_figures")
    write_report(runs, page, folder)
    print(f"{page}, figures in {folder}")


def dashboard(*, entity: str, project: str, name: str = "Distillation dynamics") -> None:
    """Make or update a W&B workspace, and print its address.

    Args:
        entity: W&B user or team
        project: W&B project of the runs
        name: name of the workspace; one of that name is updated
    """
    from distill_dynamics.report.dashboard import write_dashboard  # needs the extra of the same name

    print(write_dashboard(entity, project, name))


def convert(
    *,
    data_dir: str,
    out: str,
    labels: bool = True,
    val_dir: str | None = None,
    size: int | None = None,
    quality: int = 95,
    chunk_mb: float = 64,
    num_workers: int | None = None,
    skip_unreadable: bool = False,
) -> None:
    """Write the chunks of an image folder.

    Args:
        data_dir: holds train/<class>/<image> and val/<class>/<image>, as for ImageFolder
        out: a new folder, or a place in object storage (s3://, gs://)
        labels: false where data_dir holds images without classes, as for UnlabelledFolder
        val_dir: without labels, holds <class>/<image> to measure a student on (default: none)
        size: resize images whose shorter side is longer to this many pixels, and encode them anew; smaller
            ones are kept as they are (default: all files are stored as they are)
        quality: of the JPEG files of --size
        chunk_mb: size of a chunk, 10^6 bytes
        num_workers: processes that read and resize (default: one a core)
        skip_unreadable: leave out images that cannot be read
    """
    from distill_dynamics.data.streaming.convert import convert  # needs the extra `streaming`

    convert(
        data_dir,
        out,
        labels=labels,
        val_dir=val_dir,
        size=size,
        quality=quality,
        chunk_mb=chunk_mb,
        num_workers=os.cpu_count() or 1 if num_workers is None else num_workers,
        skip_unreadable=skip_unreadable,
    )
