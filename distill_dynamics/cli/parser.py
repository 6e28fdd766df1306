"""A mistake on the command line or in a config, told in one line: where, what is wrong, what would be right.

jsonargparse lists everything it tried, many lines deep. `OneLineParser` is its parser on every level, that
of the command and those of the classes named in a config: each turns its own mistake into one `Reason`,
the levels above hand it on, and the outermost looks up where the user wrote it.
"""

from __future__ import annotations

import re
import sys
from argparse import SUPPRESS, Action
from contextlib import suppress
from copy import copy
from typing import Any, Literal, NoReturn, get_args, get_origin

import yaml
from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace

from distill_dynamics.cli.mistakes import reason_of
from distill_dynamics.cli.places import check_yaml, place


class ShortHelp(DefaultHelpFormatter):
    """jsonargparse's help, without the types and classes that it lists by the page."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"max_help_position": 28, **kwargs})

    def _get_help_string(self, action: Action) -> str:
        text = action.help or ""
        if action.required and action.option_strings:
            return f"{text} (required)"
        default = action.default
        shows = isinstance(default, int | float | str) and default is not False and default != SUPPRESS
        return f"{text} (default: %(default)s)" if shows and "default" not in text.lower() else text

    def _get_default_metavar_for_optional(self, action: Action) -> str:
        hint = getattr(action, "_typehint", None)
        kinds = [kind for kind in get_args(hint) if kind is not type(None)] or [hint]
        if any(isinstance(kind, type) and issubclass(kind, int) for kind in kinds):
            return "N"
        if float in kinds:
            return "X"
        choices = get_args(kinds[0]) if len(kinds) == 1 and get_origin(kinds[0]) is Literal else ()
        return f"{{{','.join(choices)}}}" if choices else action.dest.rpartition(".")[2].upper()

    def _format_action_invocation(self, action: Action) -> str:
        shown = copy(action)
        shown.option_strings = [option for option in action.option_strings if not option.endswith("+")]
        return super()._format_action_invocation(shown)


class OneLineParser(ArgumentParser):
    """jsonargparse's parser, with errors of one line, short help and without abbreviated options."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, "formatter_class": ShortHelp, **kwargs})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the mistake and exit with 2."""
        args = getattr(self, "args", [])
        reason = reason_of(message, getattr(ex, "subcommand_parser", self))
        if not self.exit_on_error:  # the parser of a class in the config
            super().error(reason.packed(), ex)
        where = f"{place(reason.key, reason.value, args)}: " if reason.key else ""
        print(f"error: {where}{reason.text}", file=sys.stderr)
        self.exit(2)

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        """Parse options; jsonargparse does not mind a number where a group of keys belongs."""
        words = args[0] if args else kwargs.get("args")
        if words is None or isinstance(words, list):
            check_yaml(sys.argv[1:] if words is None else words)
        config = super().parse_args(*args, **kwargs)
        for group in {a.dest.split(".")[0] for a in self._actions if re.search(r"\.(?!help$)", a.dest)}:
            if group in config and not isinstance(config[group], Namespace):
                self.error(f"Parser key \"{group}\": Expected a <class 'dict'>. Got value: {config[group]}")
        return config

    def _load_config_parser_mode(
        self, content: str, path: Any = "", ext_vars: Any = None, prev_cfg: Namespace | None = None
    ) -> Namespace:
        """Read a config. Its terms, and its teachers, take the place of all that earlier ones have.

        jsonargparse drops an earlier config's terms of other names, and would take from one of the same name
        each key that this one leaves to its default.
        """
        file: Any = None
        with suppress(yaml.YAMLError):  # which is told of below
            file = yaml.safe_load(content)
        model = file.get("model") if isinstance(file, dict) else None
        replaced = [key for key in ("terms", "teachers") if isinstance(model, dict) and key in model]
        if prev_cfg is not None and replaced:
            prev_cfg = prev_cfg.clone()
            for key in replaced:
                prev_cfg.pop(f"model.{key}", None)
        return super()._load_config_parser_mode(content, path, ext_vars, prev_cfg)
