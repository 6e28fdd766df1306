"""Where in a command line and its config files a key was given."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import yaml


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
    names = _names(key.split("."))
    under = [s for s in settings(args) if s.path[0] == names[0] and _in_order(names, s.path)]
    equal = sorted((s for s in under if s.value == value), key=lambda setting: len(setting.path))
    named = [s for s in under if s.path[-1] == names[-1]]
    return next((setting.where for setting in equal + named + under), key)


def _names(path: Iterable[str]) -> tuple[str, ...]:
    """A path as jsonargparse names it, whatever the user wrote: n_images for n-images."""
    return tuple(name.replace("-", "_") for name in path)


def _in_order(names: Sequence[str], path: Sequence[str]) -> bool:
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
                yield from _keys(Path(value).read_text(), (), file=value)
            else:
                path = tuple(option.split("."))
                yield Setting(f"--{option}", _names(path), value)
                yield from _keys(value, path)


def yaml_texts(args: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The YAML of a command line, by the name of the option or file: its files, and those that they name."""
    values = [(f"--{option}", value) for option, value in options(args)]
    folders = [Path(), *(Path(value).parent for option, value in values if option == "--config")]
    yield from ((option, value) for option, value in values if value.lstrip().startswith(("{", "[")))
    named = [value for _, value in values] + [setting.value for setting in settings(args)]
    for name in dict.fromkeys(name for name in named if name.endswith((".yaml", ".yml", ".json"))):
        for path in dict.fromkeys(folder / name for folder in folders):
            with suppress(OSError, UnicodeDecodeError, ValueError):
                yield str(path), path.read_text()


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
            yield Setting(where, _names(path), str(loader.construct_object(child, deep=True)))
            yield from visit(child, path)

    return visit(loader.get_single_node(), above)
