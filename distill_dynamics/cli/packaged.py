"""`--config packaged:NAME`: the configs that come with the package, from any folder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib import resources
from itertools import groupby
from pathlib import Path

from distill_dynamics.errors import UserError, nearest

PACKAGED = "packaged:"


def with_packaged(words: Sequence[str]) -> list[str]:
    """A command line with the file's path for each `packaged:NAME` that stands for a config.

    UserError, with all names, for one that there is not.
    """
    found, before = [], ""
    for word in words:
        option, equals, value = word.partition("=")
        if before in _TAKE_A_CONFIG and word.startswith(PACKAGED):
            word = _path(word, before)
        elif option in _TAKE_A_CONFIG and value.startswith(PACKAGED):
            word = f"{option}{equals}{_path(value, option)}"
        found.append(word)
        before = word
    return found


_TAKE_A_CONFIG = ("--config", "-c", "--data")


def _path(given: str, option: str) -> str:
    name, folder = given.removeprefix(PACKAGED), _folder()
    files = sorted(file.relative_to(folder) for file in folder.rglob("*.yaml"))
    # A sweep is W&B's to read.
    known = {file.with_suffix("").as_posix(): file for file in files if file.parts[0] != "sweeps"}
    if name not in known:
        wrong = f"no such config{nearest(name, known, few=0)}" if name else "give a NAME after it"
        raise UserError(f"{option} {given}: {wrong} (known: {_listed(known)})")
    return str(folder / known[name])


def _folder() -> Path:
    """In a wheel within the package; in a checkout beside it."""
    package = Path(str(resources.files("distill_dynamics")))
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def _listed(names: Iterable[str]) -> str:
    """ "a, b, folder/{c,d}", as a shell has it."""
    folders = groupby(sorted(names, key=lambda name: name.rpartition("/")), lambda n: n.rpartition("/")[0])
    inside = {folder: [name.rpartition("/")[2] for name in group] for folder, group in folders}
    return ", ".join(f"{k}/{{{','.join(v)}}}" if k else ", ".join(v) for k, v in inside.items())
