"""Which image files a folder holds: one rule for training, analysis and conversion.

* Files and folders whose name begins with a dot, and what operating systems put beside images, are none.
* Links are followed, and every file is listed once: under its own path, or that of the first link to it where
  it lies elsewhere. A link to a folder that it lies in is left out.
* What has an image's ending and is no file (a link to nothing, a pipe) is listed: it cannot be read, and that
  is for the reader to tell or to skip.
"""

import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS

from distill_dynamics.errors import UserError

ENDINGS = " ".join(IMG_EXTENSIONS)
"""The endings of images, for a message; a file may have them in capitals."""

_NOT_READ = (".gif", ".heic", ".heif", ".avif", ".jxl", ".jp2", ".j2k", ".jfif", ".dng", ".psd", ".svg")
"""Endings by which a user means an image, beside `IMG_EXTENSIONS`."""

_OF_SYSTEMS = frozenset(
    ("__MACOSX", "__pycache__", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information")
)
"""Folders that archives, servers and file systems leave; some hold thumbnails."""


def images_in(root: Path, setting: str) -> list[tuple[str, str]]:
    """(folder, name) of every image file in `root` and the folders in it, in no order; "" is `root` itself.

    Warns, naming `setting`, of images whose format is not read and of links that are left out. Raises
    UserError for a folder that cannot be listed.
    """
    tree = _Tree(os.fspath(root), setting)
    tree.walk()
    read = [file for file in tree.files if file[1].lower().endswith(IMG_EXTENSIONS)]
    _warn_of_formats(root, setting, (name for _, name in set(tree.files).difference(read)))
    for links, why in (
        (tree.again, "leads to what is listed already"),
        (tree.loops, "leads to a folder above"),
    ):
        if links:
            more = f" ({len(links)} such)" if len(links) > 1 else ""
            warnings.warn(f"{setting}: {min(links)} {why}, and is left out{more}", stacklevel=3)
    return read


def folders_in(root: Path, setting: str) -> list[str]:
    """Names of the folders right in `root`, sorted: the classes of a split.

    Raises UserError for a link to a folder that is not there: a class would be missing without a word.
    """
    folders = []
    for entry in _entries(root, setting):
        if _is_folder(entry):
            if not (entry.is_symlink() and _inside(os.path.realpath(root), os.path.realpath(entry.path))):
                folders.append(entry.name)
        elif entry.is_symlink() and not os.path.exists(entry.path) and not os.path.splitext(entry.name)[1]:
            raise UserError(
                f"{setting}: {entry.path} is a link to {os.readlink(entry.path)}, which is not there"
            )
    return sorted(folders)


@dataclass
class _Tree:
    """What was found so far. Real files and folders come before links to them, whatever they are called."""

    root: str
    setting: str
    files: list[tuple[str, str]] = field(default_factory=list)
    again: list[str] = field(default_factory=list)
    loops: list[str] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)
    """Real paths of the folders that were walked."""

    def walk(self) -> None:
        """Those folders to which no link leads, then those one link away, two, ...; links to files last."""
        level: list[tuple[str, str, tuple[str, ...]]] = [("", os.path.realpath(self.root), ())]
        links: list[tuple[str, str, str]] = []
        while level:
            level = sorted(link for place in level for link in self._walk_real(*place, links))
        linked, real_folder = set[str](), cache(os.path.realpath)
        for folder, name, path in sorted(links):
            real = _real_file(path, real_folder)
            if real is None:  # a link to nothing
                self.files.append((folder, name))
            elif real in linked or (os.path.dirname(real) in self.seen and _listed(os.path.basename(real))):
                self.again.append(os.path.join(self.root, folder, name))
            else:
                linked.add(real)
                self.files.append((folder, name))

    def _walk_real(
        self, top: str, real_top: str, through: tuple[str, ...], links: list[tuple[str, str, str]]
    ) -> Iterator[tuple[str, str, tuple[str, ...]]]:
        """Lists `top` and the folders in it but for links: to files in `links`, to folders given back.

        `through`: the real folders of the links by which one comes here.
        """
        pending = [(top, real_top)]
        while pending:
            folder, real = pending.pop()
            if real in self.seen:
                self.again.append(os.path.join(self.root, folder))
                continue
            self.seen.add(real)
            for entry in _entries(os.path.join(self.root, folder), self.setting):
                name, path = os.path.join(folder, entry.name), os.path.join(real, entry.name)
                if not entry.is_symlink():
                    if entry.is_dir():
                        pending.append((name, path))
                    elif _listed(entry.name):
                        self.files.append((folder, entry.name))
                elif _is_folder(entry):
                    target = os.path.realpath(path)
                    if any(_inside(place, target) for place in (*through, real)):
                        self.loops.append(os.path.join(self.root, name))
                    else:
                        yield name, target, (*through, real)
                elif _listed(entry.name):
                    links.append((folder, entry.name, path))


def _entries(folder: str | Path, setting: str) -> list[os.DirEntry[str]]:
    """What is in a folder and not hidden. A folder that cannot be listed must not look like an empty one."""
    try:
        with os.scandir(folder) as entries:
            return [e for e in entries if not e.name.startswith(".") and e.name not in _OF_SYSTEMS]
    except OSError as error:
        raise UserError(f"{setting}: the folder {folder} cannot be read: {error.strerror}") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # links in a circle
        return False


def _listed(name: str) -> bool:
    return name.lower().endswith((*IMG_EXTENSIONS, *_NOT_READ)) and not name.startswith(".")


def _inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def _real_file(path: str, real_folder: Callable[[str], str]) -> str | None:
    """Where a link leads, None if nowhere. realpath would ask for each folder on the way, of every file."""
    for _ in range(40):
        try:
            target = os.readlink(path)
        except FileNotFoundError:
            return None
        except OSError:  # it is no link
            return path
        folder, name = os.path.split(os.path.join(os.path.dirname(path), target))
        path = os.path.join(real_folder(folder), name)
    return None


def _warn_of_formats(root: Path, setting: str, names: Iterable[str]) -> None:
    if left := Counter(os.path.splitext(name)[1].lower() for name in names):
        endings = ", ".join(f"{ending} ({count})" for ending, count in sorted(left.items()))
        plural = "s" if left.total() > 1 else ""
        warnings.warn(
            f"{setting}: {left.total()} file{plural} in {root} left out, not being read: {endings}",
            stacklevel=4,
        )
