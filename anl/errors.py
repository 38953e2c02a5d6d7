"""The one error a user is meant to read: it names the thing and the mend."""


class UserError(Exception):
    """A mistake the user can mend. The command line prints its message as one line and exits with status 2."""
