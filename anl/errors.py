"""The one error a user is meant to read: it names the thing and the mend."""


class UserError(Exception):
    """A mistake the user can mend. The command line prints its message as one line and exits with status 2."""


def reason(problem, most=120):
    """Another library's error as part of a UserError's line: at most `most` characters, none that steers a terminal."""
    words = printable(" ".join(str(problem).split()))
    return words[:most] or type(problem).__name__


def printable(text):
    """Text that any terminal and file takes: control characters and undecodable bytes escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)
