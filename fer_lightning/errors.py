"""The one exception that means "the user can fix this"."""


class UserError(Exception):
    """A mistake in the input, told in one line: what was given, what is accepted, what to do.

    The command line prints it without a traceback and exits with code 2; everything else that escapes is a bug
    and keeps its traceback.
    """
