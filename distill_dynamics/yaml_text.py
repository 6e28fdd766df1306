"""YAML as its own rule has it: a key that is given twice is an error. PyYAML takes the last silently."""

from __future__ import annotations

from typing import Any

import yaml

_MERGE = "tag:yaml.org,2002:merge"


def load(text: str) -> Any:
    """The content of a YAML text, plain values alone. `yaml.YAMLError` for a text that is none."""
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        _refuse_repeated(node, loader)
        return None if node is None else loader.construct_document(node)
    finally:
        loader.dispose()


def _refuse_repeated(node: yaml.Node | None, loader: yaml.SafeLoader) -> None:
    """Raise `yaml.MarkedYAMLError`, with the line, if a key is given twice. Merge keys (`<<`) may be."""
    nodes, seen = [node], set()
    while nodes:
        node = nodes.pop()
        if id(node) in seen:  # an alias
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            nodes += node.value
        elif isinstance(node, yaml.MappingNode):
            _refuse_repeated_in(node, loader)
            nodes += [child for pair in node.value for child in pair]


def _refuse_repeated_in(node: yaml.MappingNode, loader: yaml.SafeLoader) -> None:
    lines: dict[Any, int] = {}
    for key, _ in node.value:
        if key.tag == _MERGE or not isinstance(key, yaml.ScalarNode):
            continue
        value, line = loader.construct_object(key), key.start_mark.line + 1
        if value in lines:
            problem = f"the key {key.value!r} is given twice, in line {lines[value]} and again"
            raise yaml.constructor.ConstructorError(problem=problem, problem_mark=key.start_mark)
        lines[value] = line
