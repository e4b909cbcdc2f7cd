"""A user's mistakes, and how a command ends.

command -> `run_command` -> exit status
"""

import reprlib
import sys
from collections.abc import Callable

MAX_MESSAGE = 1000  # characters

_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = 200
shown = _repr.repr  # writes a value for a message, shortened if it is long


class UserError(Exception):
    """A mistake that the user can fix; a command prints it in one line and exits with
    2."""

    def __str__(self) -> str:
        """Return one line of printable text; escape the rest and cut long messages."""
        text = super().__str__()
        if len(text) > MAX_MESSAGE:
            text = f"{text[: MAX_MESSAGE // 2]}...{text[-MAX_MESSAGE // 2 :]}"
        return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class StoppedError(UserError):
    """Training was asked to stop, and everything is saved."""


def first_line(error: Exception) -> str:
    """Return the first line of a library's error, or its type if it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def run_command(command: Callable[[], None]) -> int:
    """Call a command and return its exit status: 0, 2 after a user's mistake, or 130
    if it was asked to stop."""
    try:
        command()
    except StoppedError as stopped:
        print(stopped)
        return 130
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return 0
