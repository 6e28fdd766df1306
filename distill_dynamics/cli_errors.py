"""A mistake on the command line or in a config, told in one line: where, what is wrong, what would be right.

jsonargparse lists everything it tried, many lines deep. `OneLineParser` is its parser on every level, that
of the command and those of the classes named in a config: each turns its own mistake into one `Reason`,
the levels above hand it on, and the outermost looks up where the user wrote it.
"""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import yaml
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from distill_dynamics import yaml_text
from distill_dynamics.cli_places import place, yaml_texts
from distill_dynamics.cli_reasons import Reason, reason_of
from distill_dynamics.cluster.ranks import tell
from distill_dynamics.errors import UserError


class OneLineParser(LightningArgumentParser):
    """LightningCLI's parser, with errors of one line and without abbreviated options."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the mistake and exit with 2; the help, if nothing at all was asked for."""
        args = getattr(self, "args", [])
        if message.startswith('expected "subcommand"') and not args:
            self.print_help()
            self.exit(2)
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


@contextmanager
def told_in_one_line() -> Iterator[None]:
    """A user's mistake inside is one line on stderr and exit status 2; any other error goes through."""
    try:
        yield
    except (ValueError, OSError, MisconfigurationException) as error:
        line = _line(error)
        if line is None:
            raise
        tell(f"error: {line}")
        raise SystemExit(2) from None


def _line(error: Exception) -> str | None:
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, UserError):
        cause = cause.__cause__  # what a class raises, jsonargparse may wrap in a ValueError of its own
    if cause is None:
        if isinstance(error, OSError) and error.filename:
            return f"{error.filename}: {error.strerror}"
        return " ".join(str(error).split()) if isinstance(error, MisconfigurationException) else None
    line = " ".join(str(cause).split())
    key = _built(error)
    return f"{key}: {line}" if key and not line.startswith(key.split(".")[0]) else line


def line_of(error: Exception) -> str:
    """A line for any error: what it says, of which key of the config, and for one of no known kind where."""
    line, key = _line(error), _built(error)
    if line is not None:
        return line
    lacking = sorted(set(re.findall(r"Requirement '([\w-]+)|No module named '([\w.]+)", str(error))))
    if lacking:  # also where jsonargparse has wrapped it
        line = f"{' or '.join(one or other for one, other in lacking)} is not installed"
    else:
        *_, (frame, number) = traceback.walk_tb(error.__traceback__)
        said = " ".join(str(error).split())[:300]
        line = f"{type(error).__name__}{': ' if said else ''}{said} (in {frame.f_code.co_filename}:{number})"
    return f"{key}: {line}" if key else line


def _built(error: Exception) -> str | None:
    """The key whose class jsonargparse was about to build."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if key := getattr(frame.f_locals.get("component"), "dest", None):
            return key
    return None
