"""The one exception that means "the user can mend this"."""


class UserError(Exception):
    """A mistake in a command, a configuration or a file: what is wrong, where, what is allowed and what to try.

    Commands print the message alone, without a traceback, and exit with status 1.
    """
