"""What jsonargparse complains of, as one reason: the messages that are known, and what is made of each."""

from __future__ import annotations

import inspect
import pkgutil
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_type_hints

from jsonargparse._typehints import get_all_subclass_paths

from distill_dynamics.cli.places import options, settings
from distill_dynamics.errors import nearest


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
    taken = [f"{action.dest}.{part}" for action in parser._actions if inner and _takes(action, part)]
    elsewhere = next((f"; did you mean {'.'.join(path)!r}?" for path in known if path[-1] == part), "")
    below_one = f"; did you mean {taken[0]!r}?" if taken else ""
    suggestion = below_one or nearest(part, [*here, *inner], few=0) or elsewhere or nearest(part, here)
    return Reason(f"no key {part!r}{suggestion}", key=".".join(parts[: depth + 1]))


def _takes(action: Any, key: str) -> bool:
    """Whether an option, not that of help, is for an object of a class whose arguments have this name."""
    made: Any = getattr(action, "_typehint", None)
    wanted = inspect.isclass(made) and not action.dest.endswith(".help")
    return wanted and key in inspect.signature(made.__init__).parameters


def _unknown_word(match: re.Match, parser: Any, key: str) -> Reason:
    suggestion = f"; did you mean --config {match[1]}?" if Path(match[1]).is_file() else ""
    return Reason(f"{match[1]!r} is no option{suggestion}")


def _missing(match: re.Match, parser: Any, key: str) -> Reason:
    names, hint = match[1].split(", "), ""
    if parser._subcommands_action:
        command = names[0].partition(".")[0]
        names = [name.removeprefix(f"{command}.") for name in names]
        hint = nearest("", _classes(parser._subcommands_action.choices[command], names[0]), least=2)
        if "config" not in dict(options(parser.args)):
            hint = "; give a --config FILE"
    return Reason(f"required, but not given: {' and '.join(names)}{hint}")


def _no_class_path(match: re.Match, parser: Any, key: str) -> Reason | None:
    made = pkgutil.resolve_name(match[1])
    known = _below(made)
    named = (setting.value.rpartition(".")[2] for setting in settings(getattr(parser, "args", [])))
    is_given = made.__name__ in named or (
        match[2] == "no key" and "class_path" in match.string.rpartition("Given value: ")[2]
    )
    if len(known) == 1 or is_given or _is_default(made):
        return None
    return Reason(f"class_path is missing{nearest('', known)}")


def _misspelt_class_path(match: re.Match, parser: Any, key: str) -> Reason | None:
    right = ["class_path", "init_args"]
    for word in re.findall(r"'(\w+)': ", match.string):
        if word not in right and (suggestion := nearest(word, right, few=0)):
            return Reason(f"no key {word!r}{suggestion}", key=word)
    return Reason(_BESIDE_CLASS_PATH) if "'class_path': " in match.string else None


def _class_for_keys(match: re.Match, parser: Any, key: str) -> Reason:
    return _keys_expected(match[1], _classes(parser, key)[match[1]], match[2])


def _keys_expected(name: str, class_path: str, given: str) -> Reason:
    keys = ", ".join(inspect.signature(pkgutil.resolve_name(class_path)).parameters)
    return Reason(f"expected the keys of a {name} ({keys}), not {given!r}", value=given)


def _unknown_class(match: re.Match, parser: Any, key: str) -> Reason:
    body = match.string
    plain = r"(?:path string|path format|Got value): (\S+)"
    named = re.search(r"class_path[= ]'(.+?)'", body) or re.search(plain, body)
    given, known = named[1] if named else key, _classes(parser, key)
    lacking = re.search(r"No module named '(.+?)'", body)
    if lacking and not f"{given}.".startswith(f"{lacking[1]}."):
        return Reason(f"{given!r} cannot be imported: {lacking[0]}", value=given)
    if "." in given:
        return Reason(f"no class {given!r}{nearest(given, known.values(), few=0)}", value=given)
    for name, path in [*known.items()][:1]:  # the base, whose arguments may be given without naming it
        if len(known) == 1 or (_is_default(pkgutil.resolve_name(path)) and not nearest(given, known, few=0)):
            return _keys_expected(name, path, given)
    if float in get_args(_type_of(parser, key)):
        return Reason(f"expected a number, not {given}, or one of {', '.join(known)}", value=given)
    return Reason(f"no class {given!r}{nearest(given, known)}", value=given)


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
    if words == ["null"]:  # the message says something else of the other types
        return None
    expected = " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
    shown = "null" if value == "None" else value[:60] or "''"
    suggestion = nearest(value, [word.strip("'") for word in words if word.startswith("'")], few=0)
    return Reason(f"expected {expected}, not {shown}{suggestion}", value=value)


RULES: list[tuple[str, Callable[[re.Match, Any, str], Reason | None]]] = [
    (r"Problem with given class_path '(.+)':\s*\x02(required|no key)", _no_class_path),
    (_PACKED, lambda match, parser, key: Reason(*match.groups())),
    (r"(?:Option|accept option) '(.+)'|unrecognized arguments: --([^\s=]+)", _unknown_key),
    (r"unrecognized arguments: (\S+)", _unknown_word),
    (r"the following arguments are required: (.+)", _missing),
    (r"Subclasses are disabled for (\w+), thus '(.+?)'", _class_for_keys),
    (
        r"module '.+' has no attribute|No module named|Expected a dot import path|Unexpected import",
        _unknown_class,
    ),
    (
        r"(?:path|Expected) '?(\S+?)'? (?:does not correspond to|to be) a subclass of (?:<class ')?(\w+)",
        lambda match, *_: Reason(f"{match[1]!r} is no subclass of {match[2]}", value=match[1]),
    ),
    (r"Not a valid subclass|Dict must include a class_path", _misspelt_class_path),
    (r"Not of type PositiveInt", lambda *_: Reason("expected a whole number above 0")),
    (r"object does not support item assignment", lambda *_: Reason("expected a list")),
    (
        r'Unable to load config "(.*)"',
        lambda match, *_: Reason(f"{match[1]!r} is no mapping and no YAML file", value=match[1]),
    ),
    (r"Expected an? (?!path )|Not a valid subclass", _wrong_type),
]
"""A pattern in a message, and what makes the reason of it: from the match, the parser and the key."""


def _type_of(parser: Any, key: str) -> Any:
    types = (getattr(action, "_typehint", None) for action in parser._actions if action.dest == key)
    return next(types, None)


def _classes(parser: Any, key: str) -> dict[str, str]:
    """The class_paths that the value of a key can have, by the name of the class."""
    hints, known = [_type_of(parser, key)], dict[str, str]()
    while hints:
        hint = hints.pop()
        if getattr(hint, "_is_protocol", False):  # what makes an object of a class
            hint = get_type_hints(hint.__call__)["return"]
        hints += get_args(hint)
        if inspect.isclass(hint) and hint.__module__ != "builtins":
            known |= _below(hint)
    return known


def _is_default(base: type) -> bool:
    """Whether a class needs no argument but has some: they are its own where no class_path says otherwise."""
    parameters = inspect.signature(base).parameters.values()
    return bool(parameters) and all(parameter.default is not parameter.empty for parameter in parameters)


def _below(base: type) -> dict[str, str]:
    return {path.rpartition(".")[2]: path for path in get_all_subclass_paths(base)}
