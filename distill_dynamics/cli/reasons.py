"""What jsonargparse complains of, as one reason: the messages that are known, and what is made of each."""

from __future__ import annotations

import difflib
import inspect
import os
import pkgutil
import re
import sys
import typing
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from distill_dynamics import yaml_text
from distill_dynamics.cli.places import options, settings


class Reason(NamedTuple):
    """What is wrong, the dotted key it is wrong with ("" for none), and the value that was given."""

    text: str
    key: str = ""
    value: str = ""

    def packed(self) -> str:
        """A form that `_PACKED` finds again in whatever jsonargparse wraps around it."""
        return "\x02" + "\x03".join(self) + "\x02"


_PACKED = "\x02(.*?)\x03(.*?)\x03(.*?)\x02"


def reason_of(message: str, parser: Any) -> Reason:
    """What the first of RULES that knows the message makes of it; else its most indented line."""
    head = re.match(r'Parser key "(?:config|(.+?))"(?: element \d+)?:\s*', message)
    key, body = (head[1] or "", message[head.end() :]) if head else ("", message)
    for pattern, rule in RULES:
        if (match := re.search(pattern, body)) and (reason := rule(match, parser, key)):
            return reason._replace(key=".".join(filter(None, [key, reason.key])))
    line = max(body.splitlines() or [""], key=lambda line: len(line) - len(line.lstrip()))
    return Reason(re.sub(r"^[ -]*(argument |Type .* a callable class: )?", "", line), key)


_BESIDE_CLASS_PATH = "beside class_path there is only init_args: the other keys belong under it"


def _unknown_key(match: re.Match, parser: Any, key: str) -> Reason:
    parts = next(filter(None, match.groups())).split(".")
    if parts == ["class_path"]:
        return Reason(_BESIDE_CLASS_PATH)
    names = [option[2:] for action in parser._actions for option in action.option_strings]
    known = [name.split(".") for name in names if name and not re.search(r"help$|^print_shtab|\+", name)]
    for depth, part in enumerate(parts):
        below = [path[depth:] for path in known if path[:depth] == parts[:depth] and len(path) > depth]
        here = dict.fromkeys(path[0] for path in below)
        if part not in here:
            break
    inner = [] if parser.exit_on_error else ["class_path", "init_args"]
    elsewhere = next((f"; did you mean {'.'.join(path)!r}?" for path in known if path[-1] == part), "")
    suggestion = nearest(part, [*here, *inner], few=0) or elsewhere or nearest(part, here)
    return Reason(f"no key {part!r}{suggestion}", key=".".join(parts[: depth + 1]))


def _unknown_word(match: re.Match, parser: Any, key: str) -> Reason:
    suggestion = f"; did you mean --config {match[1]}?" if Path(match[1]).is_file() else ""
    return Reason(f"{match[1]!r} is no option{suggestion}")


def _missing(match: re.Match, parser: Any, key: str) -> Reason:
    names, hint = match[1].split(", "), ""
    if parser._subcommands_action:
        command = names[0].partition(".")[0]
        names = [name.removeprefix(f"{command}.") for name in names]
        hint = nearest("", _known_classes(parser._subcommands_action.choices[command], names[0]), least=2)
        if "config" not in dict(options(parser.args)):
            hint = "; give a --config FILE"
    return Reason(f"required, but not given: {' and '.join(names)}{hint}")


def _no_class_path(match: re.Match, parser: Any, key: str) -> Reason | None:
    known = _subclasses(_import(match[1])[1])
    is_given = match[2] == "no key" and "class_path" in match.string.rpartition("Given value: ")[2]
    return Reason(f"class_path is missing{nearest('', known)}") if len(known) > 1 and not is_given else None


def _misspelt_class_path(match: re.Match, parser: Any, key: str) -> Reason | None:
    right = ["class_path", "init_args"]
    for word in re.findall(r"'(\w+)': ", match.string):
        if word not in right and (suggestion := nearest(word, right, few=0)):
            return Reason(f"no key {word!r}{suggestion}", key=word)
    return Reason(_BESIDE_CLASS_PATH) if "'class_path': " in match.string else None


def _class_for_keys(match: re.Match, parser: Any, key: str) -> Reason:
    keys = ", ".join(inspect.signature(_known_classes(parser, key)[match[1]]).parameters)
    return Reason(f"expected the keys of a {match[1]} ({keys}), not {match[2]!r}", value=match[2])


def _unknown_class(match: re.Match, parser: Any, key: str) -> Reason:
    body = match.string
    plain = r"(?:path string|path format|Got value): (\S+)"
    found = re.search(r"class_path[= ]'(.+?)'", body) or re.search(plain, body)
    given = found[1] if found else key
    if "." not in given:
        known = _known_classes(parser, key)
        if len(known) == 1:  # its arguments are given without naming it
            name, only = known.popitem()
            expected = f"the arguments of {name} ({', '.join(inspect.signature(only).parameters)})"
            return Reason(f"expected {expected}, not {given!r}", value=given)
        if float in _parts(_typehint(parser, key)):
            return Reason(f"expected a number, not {given}, or one of {', '.join(known)}", value=given)
        return Reason(f"no class {given!r}{nearest(given, known)}", value=given)
    lacking = re.search(r"No module named '(.+?)'", body)
    if lacking and not f"{given}.".startswith(f"{lacking[1]}."):
        return Reason(f"{given!r} cannot be imported: {lacking[0]}", value=given)
    right, _ = _import(given, correct=True)
    suggestion = f"; did you mean {right!r}?" if right not in ("", given) else ""
    return Reason(f"no class {given!r}{suggestion}", value=given)


def _wrong_class(match: re.Match, parser: Any, key: str) -> Reason:
    return Reason(f"{match[1]!r} is no subclass of {match[2]}", value=match[1])


TYPES = {
    "<class 'int'>": "a whole number",
    "<class 'float'>": "a number",
    "<class 'bool'>": "true or false",
    "<class 'str'>": "text",
    "<class 'NoneType'>": "null",
    "<class 'list'>": "a list",
    "<class 'dict'>": "a mapping",
    "import path or a subclass spec": "a class_path",
}


def _wrong_type(match: re.Match, parser: Any, key: str) -> Reason | None:
    body = match.string.replace("Not a valid subclass of", "Expected a class_path of")
    element = re.search(r"Expected an? (.+?)\. Got value: (.*)", body)  # one of a list, in the value
    value = element[2] if element else (re.findall(r"Given value: (.*)", body) or ["this"])[-1]
    words: list[str] = []
    for kind in [element[1]] if element else re.findall(r"Expected an? (?!path )(.+)", body):
        kind = kind.partition(", but")[0]
        words += re.findall(r"'[^']+'", kind) if "Literal[" in kind else [TYPES.get(kind, f"a {kind}")]
    expected = " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
    if words == ["null"]:  # the message says something else of the other types
        return None
    shown = "null" if value == "None" else value[:60] or "''"
    suggestion = nearest(value, [word.strip("'") for word in words if word.startswith("'")], few=0)
    return Reason(f"expected {expected}, not {shown}{suggestion}", value=value)


def _no_list(match: re.Match, parser: Any, key: str) -> Reason | None:
    several = {action.dest for action in parser._actions if action.nargs == "+"}
    for setting in settings(parser.args):
        in_file = not setting.where.startswith("--")  # on the command line one word makes a list
        if in_file and setting.path[-1] in several and not setting.value.startswith("["):
            return Reason(f"expected a list, [{setting.value}]", key=setting.path[0], value=setting.value)
    return None


def _no_mapping(match: re.Match, parser: Any, key: str) -> Reason:
    return Reason(f"{match[1]!r} is no mapping and no YAML file", value=match[1])


def _config_file(match: re.Match, parser: Any, key: str) -> Reason:
    path = next((Path(p) for _, p in options(parser.args) if os.path.abspath(p) == match[1]), Path(match[1]))
    folder, wrong = (path, "is a folder, not a file") if path.is_dir() else (path.parent, "no such file")
    known = sorted(file.name for file in folder.glob("*") if file.suffix in (".yaml", ".yml"))
    return Reason(f"{path}: {wrong}{nearest(path.name, known, cutoff=0.75)}")


def _broken_config(match: re.Match, parser: Any, key: str) -> Reason:
    for path in [value for option, value in options(parser.args) if option == "config"]:
        try:
            content = yaml_text.load(Path(path).read_text() if Path(path).is_file() else path)
        except yaml.MarkedYAMLError as error:
            return Reason(yaml_text.told(path, error))
        if not isinstance(content, dict):
            wrong = "is empty" if content is None else f"holds no keys, but {str(content)[:60]}"
            return Reason(f"{path}: {wrong}; a config has model: and data:")
    return Reason(match.string.splitlines()[0])


_NO_CLASS = r"module '.+' has no attribute|No module named|Expected a dot import path|Unexpected import path"
RULES: list[tuple[str, Callable[[re.Match, Any, str], Reason | None]]] = [
    (r"Problem with given class_path '(.+)':\s*\x02(required|no key)", _no_class_path),
    (_PACKED, lambda match, parser, key: Reason(*match.groups())),
    (r"(?:Option|accept option) '(.+)'|unrecognized arguments: --([^\s=]+)", _unknown_key),
    (r"unrecognized arguments: (\S+)", _unknown_word),
    (r"the following arguments are required: (.+)", _missing),
    (r"Subclasses are disabled for (\w+), thus '(.+?)'", _class_for_keys),
    (_NO_CLASS, _unknown_class),
    (r"Import path (\S+) does not correspond to a subclass of (\w+)", _wrong_class),
    (r"Expected '(.+)' to be a subclass of <class '(.+)'>", _wrong_class),
    (r"Not a valid subclass|Dict must include a class_path", _misspelt_class_path),
    (r"object does not support item assignment", _no_list),
    (r'Unable to load config "(.*)"', _no_mapping),
    (r"(?:File does not exist|Path is not a file): '(.+)'", _config_file),
    (r"Problems parsing config|Unexpected config", _broken_config),
    (r"Expected an? (?!path )|Not a valid subclass", _wrong_type),
]
"""A pattern in a message, and what makes the reason of it: from the match, the parser and the key."""


def nearest(word: str, known: Iterable[str], few: int = 12, least: int = 1, cutoff: float = 0.6) -> str:
    """ "; did you mean 'first'?", else what is known if that is little, else nothing."""
    known = list(known)
    if close := difflib.get_close_matches(word, known, n=1, cutoff=cutoff):
        return f"; did you mean {close[0]!r}?"
    return f" (known: {', '.join(known)})" if least <= len(known) <= few else ""


def _import(class_path: str, correct: bool = False) -> tuple[str, Any]:
    """A dotted path and what it leads to; with `correct`, the nearest one that exists; ("", None) if none.

    Nothing is imported: a spelling is no reason to run a module.
    """
    found: list[str] = []
    target: Any = None
    with suppress(Exception):
        for part in class_path.split("."):
            if found and target is None:  # in a module that is not imported: taken as it is
                return ".".join([*found, *class_path.split(".")[len(found) :]]), None
            folders = getattr(target, "__path__", []) if found else None
            names = [module.name for module in pkgutil.iter_modules(folders)]
            names += dir(target) if found else [*sys.modules]
            if part not in names:
                part = difflib.get_close_matches(part, names if correct else [], n=1)[0]
            found.append(part)
            target = getattr(target, part, None) or sys.modules.get(".".join(found))
        return ".".join(found), target
    return "", None


def _known_classes(parser: Any, key: str) -> dict[str, type]:
    """The classes by name that the value of a key can be of."""
    return _classes(_typehint(parser, key))


def _typehint(parser: Any, key: str) -> Any:
    return next((getattr(a, "_typehint", None) for a in parser._actions if a.dest == key), None)


def _parts(hint: Any) -> list[Any]:
    """A type and all that it is made of."""
    return [hint, *(inner for part in typing.get_args(hint) for inner in _parts(part))]


def _classes(hint: Any) -> dict[str, type]:
    if getattr(hint, "_is_protocol", False):  # what makes an object of a class
        return _classes(typing.get_type_hints(hint.__call__)["return"])
    found = _subclasses(hint) if inspect.isclass(hint) and hint.__module__ != "builtins" else {}
    for part in typing.get_args(hint):
        found |= _classes(part)
    return found


def _subclasses(base: type) -> dict[str, type]:
    usable = not (inspect.isabstract(base) or base.__name__.startswith("_"))
    found = {base.__name__: base} if usable else {}
    children: list[type] = base.__subclasses__()
    for child in children:
        found |= _subclasses(child)
    return found
