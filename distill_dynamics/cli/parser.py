"""A mistake on the command line or in a config, told in one line: where, what is wrong, what would be right.

jsonargparse lists everything it tried, many lines deep. `OneLineParser` is its parser on every level, that
of the command and those of the classes named in a config: each turns its own mistake into one `Reason`,
the levels above hand it on, and the outermost looks up where the user wrote it.
"""

from __future__ import annotations

import re
import sys
from typing import Any, NoReturn

import yaml
from jsonargparse import ArgumentParser, Namespace

from distill_dynamics import yaml_text
from distill_dynamics.cli.places import place, yaml_texts
from distill_dynamics.cli.reasons import Reason, reason_of


class OneLineParser(ArgumentParser):
    """jsonargparse's parser, with errors of one line and without abbreviated options."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

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
        self._refuse_repeated_keys(sys.argv[1:] if words is None else words)
        config = super().parse_args(*args, **kwargs)
        for group in {a.dest.split(".")[0] for a in self._actions if re.search(r"\.(?!help$)", a.dest)}:
            if group in config and not isinstance(config[group], Namespace):
                self.error(f"Parser key \"{group}\": Expected a <class 'dict'>. Got value: {config[group]}")
        return config

    def _refuse_repeated_keys(self, args: Any) -> None:
        """jsonargparse takes the last of two equal keys of a mapping, and drops the other without a word."""
        if isinstance(args, list):
            for name, text in yaml_texts(args):
                try:
                    yaml_text.refuse_repeated(text)
                except yaml.constructor.ConstructorError as error:
                    self.error(Reason(yaml_text.told(name, error)).packed())
                except yaml.YAMLError:
                    pass  # told where it is read

    def parse_path(self, path: Any, *args: Any, **kwargs: Any) -> Any:
        """Parse a config file; jsonargparse lets the error of one that is no text through."""
        try:
            return super().parse_path(path, *args, **kwargs)
        except UnicodeDecodeError:
            self.error(f"{path}: no text file, so no config")
