"""Files of a run that anyone may have written: read whole, within bounds, or refused in a few words.

A report is made of other people's runs. What stands in these files is never executed, and none of them may
take the page of many runs down, or keep it waiting: neither a pipe nor brackets without end.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from distill_dynamics import yaml_text
from distill_dynamics.files import open_regular

MOST_TEXT = 2**24
"""Bytes of metrics.csv and JSON files: that of a thousand epochs and a hundred columns is 2 MiB."""

_MOST_YAML = 2**18
"""Bytes: `fit` writes some 6 thousand. PyYAML reads this many in seconds, and more in minutes."""

_MOST_NODES = 20_000
"""Of a YAML file with its aliases written out."""

_DEEPEST = 100
"""Levels of brackets or indents."""


class Unreadable(Exception):
    """Why a file is not read, in words that may follow its name."""

    @property
    def bound(self) -> str:
        """ " (larger than 16 MiB)": which bound it breaks; "" where it could not be read at all."""
        return "" if self.__cause__ else f" ({self})"


def read_text(path: Path, most: int = MOST_TEXT) -> str:
    """A text file; bytes that are no UTF-8 are replaced. Raises Unreadable."""
    try:
        with open_regular(path) as file:
            content = file.read(most + 1)
    except OSError as error:
        raise Unreadable(error.strerror or str(error)) from error
    if len(content) > most:
        raise Unreadable(f"larger than {most / 2**20:.3g} MiB")
    return content.decode("utf-8", errors="replace")


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises Unreadable."""
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise Unreadable("no valid JSON") from error


def read_yaml(path: Path) -> Any:
    """What a YAML file holds, which is plain data of modest size. Raises Unreadable."""
    text = read_text(path, _MOST_YAML)
    try:
        _bounded(yaml.parse(text, yaml.SafeLoader))
        return yaml_text.load(text)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise Unreadable("no valid YAML") from error


def _bounded(events: Iterator[yaml.Event]) -> None:
    """Goes through a YAML file piece by piece, before any of it is built.

    Ten lines of aliases to aliases stand for 10^9 nodes, which nothing that goes through them ends with.
    Raises Unreadable.
    """
    sizes: dict[str, int] = {}
    open_nodes: list[tuple[str | None, int]] = [(None, 0)]  # anchor, nodes in it so far

    def add(anchor: str | None, count: int) -> None:
        if anchor is not None:
            sizes[anchor] = count
        above, before = open_nodes[-1]
        if before + count > _MOST_NODES:
            raise Unreadable(f"more than {_MOST_NODES:,} values")
        open_nodes[-1] = above, before + count

    for event in events:
        if isinstance(event, yaml.CollectionStartEvent):
            if len(open_nodes) > _DEEPEST:
                raise Unreadable(f"more than {_DEEPEST} levels deep")
            open_nodes.append((event.anchor, 1))
        elif isinstance(event, yaml.CollectionEndEvent):
            add(*open_nodes.pop())
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise Unreadable("an alias to nothing, or to what it is in")
            add(None, sizes[event.anchor])
        elif isinstance(event, yaml.ScalarEvent):
            add(event.anchor, 1)
