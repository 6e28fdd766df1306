"""The one exception that means "the user can mend this", and what its line is made of."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """A mistake in a config, a path or a file, told in one line: what is wrong, where, what would be right.

    The command line prints the line without a traceback and exits with 2; from Python it is an
    ordinary `ValueError`.
    """


@contextmanager
def at(key: str) -> Iterator[None]:
    """Begin a UserError with its place in a config."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{key}: {error}") from error


def first_line(error: BaseException) -> str:
    """The first line of what an error says, the name of its class where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def nearest(word: str, known: Iterable[str], few: int = 12, least: int = 1, cutoff: float = 0.6) -> str:
    """ "; did you mean 'first'?", else what is known if that is little, else nothing."""
    known = list(known)
    if close := difflib.get_close_matches(word, known, n=1, cutoff=cutoff):
        return f"; did you mean {close[0]!r}?"
    return f" (known: {', '.join(known)})" if least <= len(known) <= few else ""
