"""libmpg123's remarks on damaged frames stay off the terminal.

libsndfile cannot tell it to be quiet, so it writes to file descriptor 2. While an MP3
file is decoded, what is written there goes through a pipe and a thread that drops these
lines and passes the others on at once.
"""

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager

REMARK = re.compile(
    rb"(?<![^\r\n])(?:\[src/libmpg123/|Note: |Warning: (?:Big change|Encountered more|"
    rb"Real sample count|Xing)).*\n"
)


class _Filter:
    """The filter of descriptor 2, which all threads that decode share."""

    def __init__(self) -> None:
        self.lock, self.num_users = threading.Lock(), 0

    def begin(self) -> None:
        """Add a user; the first one puts the pipe in the place of the terminal."""
        with self.lock:
            self.num_users += 1
            if self.num_users > 1:
                return
            try:
                self.terminal = os.dup(2)
            except OSError:  # a program without a terminal
                self.terminal = None
                return
            reading, writing = os.pipe()
            os.dup2(writing, 2)
            os.close(writing)
            arguments = reading, os.dup(self.terminal)
            self.thread = threading.Thread(target=_pass_on, args=arguments, daemon=True)
            self.thread.start()

    def end(self) -> None:
        """Remove a user; the last one puts the terminal back."""
        with self.lock:
            self.num_users -= 1
            if self.num_users or self.terminal is None:
                return
            os.dup2(self.terminal, 2)  # closes the pipe, so that the thread ends
            os.close(self.terminal)
            self.thread.join(1)  # a program started meanwhile may keep the pipe open


def _pass_on(reading: int, terminal: int) -> None:
    while data := os.read(reading, 2**16):
        left = memoryview(REMARK.sub(b"", data))
        while left:
            left = left[os.write(terminal, left) :]
    os.close(reading)
    os.close(terminal)


_filter = _Filter()


@contextmanager
def without_remarks() -> Iterator[None]:
    """Drop libmpg123's lines of any thread for as long as one of them is in here."""
    _filter.begin()
    try:
        yield
    finally:
        _filter.end()
