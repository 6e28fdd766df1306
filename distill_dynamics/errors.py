"""The one exception that means "the user can mend this"."""


class UserError(ValueError):
    """A mistake in a config, a path or a file, told in one line: what is wrong, where, what would be right.

    The command line prints the line without a traceback and exits with 2; from Python it is an
    ordinary `ValueError`.
    """
