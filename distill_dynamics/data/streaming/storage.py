"""Object storage: its clients are litdata's, and what they raise becomes one line."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock

from distill_dynamics.errors import UserError, first_line

ATTEMPTS = 12
"""How often a storage is asked before it is given up on: about half a minute, as the waits double."""


def is_url(place: str) -> bool:
    """Whether `place` is in object storage (s3://, gs://, ...), and not a folder."""
    return "://" in place


def storage(url: str, setting: str) -> Any:
    """litdata's client of an object storage: `upload_file`, `download_file`, `exists`.

    Raises UserError, which names the setting, if there is none.
    """
    scheme = url.partition("://")[0]
    if scheme not in ("s3", "gs"):
        raise UserError(f"{setting}: {url}: s3:// and gs:// are known, {scheme}:// is not")
    try:
        return _client(scheme, os.getpid())
    except ImportError as error:
        more = " google-cloud-storage" if scheme == "gs" else ""
        raise UserError(
            f"{setting}: {url} needs litdata: pip install 'distill_dynamics[streaming]'{more}"
        ) from error
    except Exception as error:  # Google's asks for credentials at once
        raise UserError(f"{setting}: {url} cannot be reached: {first_line(error)}") from error


@cache
def _client(scheme: str, process: int) -> Any:
    """One a process: a forked one must not use its parent's connections."""
    from litdata.streaming.fs_provider import GCPFsProvider, S3FsProvider

    if scheme == "gs":
        return GCPFsProvider()
    from botocore.config import Config

    # litdata itself would try 1,000 times: hours, where an address is wrong.
    patience = Config(connect_timeout=10, retries={"total_max_attempts": ATTEMPTS, "mode": "standard"})
    return S3FsProvider({"config": patience})


def is_stored(url: str, setting: str) -> bool:
    """Whether there is such an object. Raises UserError, which names the setting, if that cannot be known."""
    client = storage(url, setting)
    with error_line(f"{setting}: {url} cannot be reached"):
        return client.exists(url)


@contextmanager
def error_line(line: str) -> Iterator[None]:
    """Makes a UserError of what a storage's client raises, whose kinds are many: `line`, and the reason."""
    try:
        yield
    except Exception as error:
        raise UserError(f"{line}: {first_line(error)}") from error


def fetch(remote: str, local: Path) -> None:
    """Brings one file to a folder, whole or not at all; of several processes one fetches, the others wait.

    Raises UserError with the storage's reason.
    """
    try:
        local.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{local}.fetch"):
            if not local.exists():
                partial = Path(f"{local}.partial")
                try:
                    if is_url(remote):
                        storage(remote, "data.data_dir").download_file(remote, str(partial))
                    else:
                        shutil.copyfile(remote, partial)
                    partial.replace(local)
                finally:
                    partial.unlink(missing_ok=True)
    except UserError:
        raise
    except Exception as error:  # whatever the storage's own client raises
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"data.cache_dir: no space left in {local.parent} (data.cache_gb limits the cache)"
            ) from error
        if isinstance(error, OSError) and error.errno is not None and error.filename != remote:
            raise UserError(f"data.cache_dir: {local.parent}: {error.strerror}") from error
        raise UserError(f"data.data_dir: {remote} cannot be fetched: {first_line(error)}") from error
