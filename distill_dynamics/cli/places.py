"""Where in a command line and its config files a key was given, and what is wrong with the files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import yaml

from distill_dynamics import yaml_text
from distill_dynamics.errors import UserError, nearest


class Setting(NamedTuple):
    """One key that was given: how to point at it, its path, its value as text."""

    where: str
    path: tuple[str, ...]
    value: str


def place(key: str, value: str, args: Sequence[str]) -> str:
    """ "configs/x.yaml:12: model.alpha" or "--model.alpha", where `args` give `value` under the dotted key.

    Without such a value it is where the key itself is given, and else the key alone. Between the names in
    `key` others may lie: jsonargparse says `model.terms.first` of `model.terms.spectral.first`.
    """
    names = key.split(".")
    under = [s for s in settings(args) if s.path[0] == names[0] and _in_order(names, s.path)]
    later_first = under[::-1]  # what is given later is what counts
    equal = sorted((s for s in later_first if s.value == value), key=lambda setting: len(setting.path))
    named = [s for s in later_first if s.path[-1] == names[-1]]
    return next((setting.where for setting in equal + named + under), key)


def _in_order(names: Iterable[str], path: Iterable[str]) -> bool:
    remaining = iter(path)
    return all(name in remaining for name in names)


def options(args: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Options of a command line, each with the value that follows it."""
    for arg, following in zip_longest(args, args[1:], fillvalue=""):
        if arg.startswith("-"):
            option, equals, value = arg.lstrip("-").partition("=")
            yield "config" if option == "c" else option, value if equals else following


def settings(args: Sequence[str]) -> Iterator[Setting]:
    """Every key in the options of a command line and in its config files."""
    for option, value in options(args):
        with suppress(OSError, UnicodeDecodeError, yaml.YAMLError):
            if option == "config":
                yield from _keys(Path(value).expanduser().read_text(), (), file=value)
            else:
                path = tuple(option.split("."))
                yield Setting(f"--{option}", path, value)
                yield from _keys(value, path)


def check_yaml(args: Sequence[str]) -> None:
    """UserError for a --config that is no file with keys, and for a key that is given twice in any YAML.

    jsonargparse takes the last of two equal keys of a mapping, and drops the other without a word.
    """
    given = [*options(args)]
    for option, value in given:
        if value.lstrip().startswith(("{", "[")):
            _load(f"--{option}", value)
        elif option == "config" and value and ": " not in value:  # else it is the YAML itself
            _check_config(Path(value).expanduser())
    folders = [Path(), *(Path(value).parent for option, value in given if option == "config")]
    named = [value for _, value in given] + [setting.value for setting in settings(args)]
    for name in dict.fromkeys(name for name in named if name.endswith((".yaml", ".yml"))):
        for path in dict.fromkeys(folder / name for folder in folders):
            with suppress(OSError, UnicodeDecodeError):
                text = path.read_text()
                _load(path, text)


def _check_config(path: Path) -> None:
    if not path.is_file():
        folder, wrong = (path, "is a folder, not a file") if path.is_dir() else (path.parent, "no such file")
        known = sorted(file.name for file in folder.glob("*") if file.suffix in (".yaml", ".yml"))
        raise UserError(f"{path}: {wrong}{nearest(path.name, known, cutoff=0.75)}")
    try:
        content = _load(path, path.read_text())
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: no text file, so no config") from error
    if not isinstance(content, dict):
        wrong = "is empty" if content is None else f"holds no keys, but {str(content)[:60]}"
        raise UserError(f"{path}: {wrong}; a config has keys, such as model: and data:")


def _load(name: object, text: str) -> object:
    try:
        return yaml_text.load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        raise UserError(f"{name}{line}: no valid YAML: {problem}") from error


def _keys(text: str, above: tuple[str, ...], file: str = "") -> Iterator[Setting]:
    loader = yaml.SafeLoader(text)

    def visit(node: yaml.Node | None, above: tuple[str, ...]) -> Iterator[Setting]:
        children: list[tuple[str, yaml.Node, yaml.Node]] = []
        if isinstance(node, yaml.MappingNode):
            children = [(str(key.value), key, child) for key, child in node.value]
        elif isinstance(node, yaml.SequenceNode):
            children = [(f"[{i}]", child, child) for i, child in enumerate(node.value)]
        for name, mark, child in children:
            path = (*above, name)
            dotted = ".".join(path).replace(".[", "[")
            where = f"{file}:{mark.start_mark.line + 1}: {dotted}" if file else f"--{dotted}"
            yield Setting(where, path, str(loader.construct_object(child, deep=True)))
            yield from visit(child, path)

    return visit(loader.get_single_node(), above)
