"""Write files whole or not at all, lock and make folders, compute digests of files.

path -> `atomic_write` -> an open file that replaces `path` at the end
folder -> `locked` -> read, change and write there, one program after another
"""

import errno
import fcntl
import hashlib
import os
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import BinaryIO

from errors import UserError

CHUNK = 2**20  # bytes read at a time
# What flock says on file systems without locks, some of those on networks.
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


class FileError(UserError):
    """A file or folder that cannot be written."""


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Yield a file that replaces `path` when the context ends; raise `FileError` if
    writing fails, with the old file unchanged.

    The new file has the old one's mode. Where `path` is a symbolic link, its target is
    replaced. Where it is a pipe, a device or this program's output, such as
    /dev/stdout, the bytes are written there when the context ends.
    """
    try:
        old = path.stat() if path.exists() else None
        write = _replacing if old is None or _is_replaceable(old) else _streaming
        with write(path, old) as file:
            yield file
    except (OSError, RuntimeError) as error:
        # torch's writer raises an error of its own, whose context is the disk's error.
        reason = error if isinstance(error, OSError) else error.__context__ or error
        raise FileError(f"{path}: cannot be written: {reason}") from None


def _is_replaceable(old: os.stat_result) -> bool:
    """Return whether this is a file or a folder, and not open as this program's
    output."""
    return (stat.S_ISREG(old.st_mode) or stat.S_ISDIR(old.st_mode)) and (
        _output(old) is None
    )


def _output(old: os.stat_result) -> int | None:
    """Return the descriptor, 1 or 2, that is open on this file, or None."""
    for descriptor in (1, 2):
        with suppress(OSError):  # it may be closed
            if os.path.samestat(os.fstat(descriptor), old):
                return descriptor
    return None


@contextmanager
def _replacing(path: Path, old: os.stat_result | None) -> Iterator[BinaryIO]:
    path = Path(os.path.realpath(path))
    partial = path.with_name(f"{secrets.token_hex(4)}.{path.name}.partial")
    mode = 0o666 if old is None else stat.S_IMODE(old.st_mode)
    try:
        # Never readable by more people than the old file, not even for a moment.
        with open(partial, "xb", opener=lambda *a: os.open(*a, mode)) as file:
            if old is not None:
                os.fchmod(file.fileno(), mode)  # without the umask
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        with suppress(OSError):  # it may be missing, or the disk may refuse this too
            partial.unlink()


@contextmanager
def _streaming(path: Path, old: os.stat_result) -> Iterator[BinaryIO]:
    with tempfile.TemporaryFile() as file:  # writers seek, which a pipe does not
        yield file
        file.seek(0)
        sys.stdout.flush()  # what was printed before comes first
        # A new descriptor of a file would not share the place that print writes to.
        output = _output(old)
        target = path if output is None else output
        with open(target, "wb", closefd=output is None) as stream:
            shutil.copyfileobj(file, stream)


@contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Hold a folder's lock, and yield whether there is one; wait while another program
    of this machine has it.

    Prints a warning and goes on without a lock where the file system has none. A
    missing folder is not locked. Raises `FileError` if locking fails otherwise.
    """
    descriptor, held = None, False
    try:
        with suppress(FileNotFoundError, NotADirectoryError):
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            _lock(descriptor, folder)
            held = True
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise FileError(f"{folder}: cannot be locked: {error}") from None
        _warn_of_no_lock(folder, error.strerror)
    try:
        yield held
    finally:
        if descriptor is not None:
            os.close(descriptor)  # which gives up the lock


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"{folder}: waiting for another program that writes there")
        fcntl.flock(descriptor, fcntl.LOCK_EX)


@cache  # once for a folder
def _warn_of_no_lock(folder: Path, reason: str) -> None:
    print(
        f"warning: {folder}: this file system has no locks ({reason}); do not let two "
        "programs write there at the same time",
        file=sys.stderr,
    )


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
