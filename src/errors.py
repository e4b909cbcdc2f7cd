"""A user's mistakes, and how a command ends.

`begin_program`, then command -> `run_command` -> exit status
"""

import atexit
import os
import reprlib
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

MAX_MESSAGE = 1000  # characters
JOINERS = "\u200c\u200d"  # parts of names in Persian, Hindi and other scripts
OUTPUT_CLOSED = 141  # what a shell reports for a program whose pipe was closed

_repr = reprlib.Repr()
_repr.maxlevel = 2  # of lists in lists, which aliases may make endless
_repr.maxstring = _repr.maxother = _repr.maxlong = 200
shown = _repr.repr  # writes a value for a message, shortened if it is long


class UserError(Exception):
    """A mistake that the user can fix; a command prints it in one line and exits with
    2."""

    def __str__(self) -> str:
        """Return one line of printable text; escape the rest and cut long messages."""
        text = _shortened(super().__str__())
        # An escape is longer than what it stands for.
        return _shortened(
            "".join(c if is_printable(c) else repr(c)[1:-1] for c in text)
        )


def _shortened(text: str) -> str:
    half = MAX_MESSAGE // 2
    return text if len(text) <= MAX_MESSAGE else f"{text[:half]}...{text[-half:]}"


class StoppedError(UserError):
    """Training was asked to stop, and everything is saved."""


def is_printable(text: str) -> bool:
    """Return whether a text has only printable characters and joiners of letters."""
    return text.translate(dict.fromkeys(map(ord, JOINERS))).isprintable()


def first_line(error: Exception) -> str:
    """Return the first line of a library's error, or its type if it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def begin_program() -> None:
    """Make a program end without a traceback when it is interrupted while it loads, and
    when its output is closed. What the terminal cannot show is printed as escapes."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end_at_once)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # it is None if the shell has closed it
            stream.reconfigure(errors="backslashreplace")
    atexit.register(_flush_output)


def _end_at_once(kind: int, frame: FrameType | None) -> None:
    os.write(2, b"stopped\n")
    os._exit(130)


def _flush_output() -> None:
    try:
        print(end="", flush=True)
    except OSError:  # Python would try again, and print a traceback
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let an interrupt of a program raise `KeyboardInterrupt`, so that it cleans up."""
    before = signal.getsignal(signal.SIGINT)
    if before is not _end_at_once:
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def run_command(command: Callable[[], None]) -> int:
    """Call a command and return its exit status: 0, 2 after a user's mistake or an
    error of the system, 130 if it was asked to stop, or 141 if its output was closed.
    """
    try:
        with _interruptible():
            command()
            print(end="", flush=True)
    except StoppedError as stopped:
        print(stopped)
        return 130
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return OUTPUT_CLOSED
    except (UserError, OSError) as error:
        print(f"error: {UserError(error)}", file=sys.stderr)
        return 2
    except MemoryError:
        print("error: there is not enough memory", file=sys.stderr)
        return 2
    return 0
