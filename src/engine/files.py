"""Write files whole or not at all, make folders, and compute digests of files.

path -> `atomic_write` -> an open file that replaces `path` at the end
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from errors import UserError

CHUNK = 2**20  # bytes read at a time


class FileError(UserError):
    """A file or folder that cannot be written."""


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Yield a file that replaces `path` when the context ends; raise `FileError` if
    writing fails, with the old file unchanged."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:
        with suppress(OSError):  # it may be missing, or the disk may refuse this too
            partial.unlink()
        # torch's writer raises an error of its own, whose context is the disk's error.
        reason = error if isinstance(error, OSError) else error.__context__ or error
        raise FileError(f"{path}: cannot be written: {reason}") from None


def make_directory(path: Path) -> None:
    """Make a directory and its parents if they are missing; raise `FileError` if that
    fails."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"{path}: cannot be written: {error}") from None


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """Return the digest of a file's contents, in hexadecimal."""
    digest = hashlib.new(algorithm)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
