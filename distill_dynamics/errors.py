"""The one exception that means "the user can mend this", and how another is told in a line."""


class UserError(ValueError):
    """A mistake in a config, a path or a file, told in one line: what is wrong, where, what would be right.

    The command line prints the line without a traceback and exits with 2; from Python it is an
    ordinary `ValueError`.
    """


def first_line(error: BaseException) -> str:
    """The first line of what an error says, the name of its class where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
