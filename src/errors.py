"""What goes wrong by a user's mistake, and how a command ends.

command -> `run_command` -> exit status
"""

import reprlib
import sys
from collections.abc import Callable

MAX_MESSAGE = 1000  # characters

_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = 200
shown = _repr.repr  # a value of any size for a message


class UserError(Exception):
    """A mistake that the user can mend: commands print it in one line and exit with
    2."""

    def __str__(self) -> str:
        """One line of printable text: escapes other characters, cuts long messages."""
        text = super().__str__()
        if len(text) > MAX_MESSAGE:
            text = f"{text[: MAX_MESSAGE // 2]}...{text[-MAX_MESSAGE // 2 :]}"
        return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class StoppedError(UserError):
    """Training that was asked to stop, and did so with everything saved."""


def run_command(command: Callable[[], None]) -> int:
    """Call a command and return its exit status: 0, 2 after a mistake of the user's, or
    130 where it was asked to stop."""
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
