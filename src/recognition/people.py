"""Enrolled people, the file that stores them, and how a command names people.

`Clip`s by name -> `People.with_clips` -> `People` <-> people.npz
arguments -> `read_people` -> files by name

U clips, P people, E embedding size.
"""

import math
import os
import unicodedata
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engine.files import atomic_write
from errors import JOINERS, first_line, is_printable
from recognition.sounds import Clip, VoiceError
from recognition.verdicts import UNKNOWN
from speech.folders import AUDIO_FILES, audio_files, folders_in
from verification.scoring import unit

STORE_VERSION = 1
MAX_INFLATION = 100  # of compressed arrays; similar paths shrink to a thirtieth
ARRAYS = {  # in the file, with their kinds and numbers of axes
    "model": "U0",
    "digest": "U0",
    "front_end": "U0",
    "names": "U1",
    "clips": "U1",
    "clip_digests": "U1",
    "seconds": "f1",
    "vectors": "f2",
}
ROWS = [key for key, kind in ARRAYS.items() if kind[1] != "0"]


@dataclass(frozen=True, eq=False)
class People:
    """The clips of enrolled people, a row for each clip, and the model that embedded
    them."""

    model: str  # the name of its file
    digest: str  # of its weights
    front_end: str  # its parameters as JSON
    names: NDArray[np.str_]  # [U], of the people
    clips: NDArray[np.str_]  # [U]
    clip_digests: NDArray[np.str_]  # [U]
    seconds: NDArray[np.float64]  # [U], of speech
    vectors: NDArray[np.float32]  # [U, E], of length 1

    def with_clips(self, name: str, clips: Sequence[Clip]) -> "People":
        """Return the same people, with more clips of one of them.

        A recording that the person has already is not added again. Raises `VoiceError`
        for an invalid name, and for a recording of somebody else.
        """
        name = checked_name(name)
        of_others = self.clip_digests[self.names != name].tolist()
        for clip in clips:
            if clip.digest in of_others:
                other = self.names[self.names != name][of_others.index(clip.digest)]
                raise VoiceError(f"{clip.name}: the same recording as one of {other}")
        known = set(self.clip_digests[self.names == name])
        new = list({c.digest: c for c in clips if c.digest not in known}.values())
        if not new:
            return self
        rows = {
            "names": [name] * len(new),
            "clips": [clip.name for clip in new],
            "clip_digests": [clip.digest for clip in new],
            "seconds": [clip.speech for clip in new],
            "vectors": [clip.vector for clip in new],
        }
        joined = {
            key: np.concatenate([getattr(self, key), added])
            for key, added in rows.items()
        }
        return People(self.model, self.digest, self.front_end, **joined)

    def without(self, name: str) -> "People":
        """Return the people without one of them; raise `VoiceError` if there is no such
        person."""
        keep = self.names != name
        if keep.all():
            raise VoiceError(
                f"{name}: expected one of the enrolled people, "
                f"{', '.join(np.unique(self.names)) or 'none'}"
            )
        rows = {key: getattr(self, key)[keep] for key in ROWS}
        return People(self.model, self.digest, self.front_end, **rows)

    def centroids(self) -> tuple[list[str], NDArray[np.float64]]:
        """Return the names [P] and the mean directions [P, E] of the people."""
        names, codes = np.unique(self.names, return_inverse=True)
        sums = np.zeros((len(names), self.vectors.shape[1]))
        np.add.at(sums, codes, self.vectors)
        return names.tolist(), unit(sums)

    def speech(self) -> NDArray[np.float64]:
        """Return the seconds of speech of each person, [P], in the order of
        `centroids`."""
        _, codes = np.unique(self.names, return_inverse=True)
        return np.bincount(codes, self.seconds)

    def save(self, path: Path) -> None:
        """Write the store; if that fails, raise `FileError` and leave an old file as it
        was."""
        with atomic_write(path) as file:
            np.savez(file, version=STORE_VERSION, **vars(self))


def load_people(path: Path) -> People:
    """Read what `People.save` wrote, executing nothing in it; raise `VoiceError` if it
    cannot be read."""
    arrays = load_arrays(path, ARRAYS, "store of people")
    return People(
        **{key: array if array.ndim else str(array) for key, array in arrays.items()}
    )


def load_arrays(
    path: Path,
    kinds: Mapping[str, str],
    description: str,
    optional: Sequence[str] = (),
    of_others: bool = False,
) -> dict[str, np.ndarray]:
    """Read the arrays of an .npz file, those that are `optional` if it has them; raise
    `VoiceError` if they are not of these kinds and numbers of axes.

    A file `of_others` has no version and may be compressed.
    """
    try:
        _refuse_larger_than_file(path, MAX_INFLATION if of_others else 1)
        with np.load(path, allow_pickle=False) as file:
            if not of_others and file["version"] != STORE_VERSION:
                raise VoiceError(
                    f"{path}: expected a {description} of version {STORE_VERSION}, "
                    f"got {file['version']}"
                )
            arrays = {
                key: file[key] for key in kinds if key in file or key not in optional
            }
        check_arrays(arrays, kinds)
        return arrays
    except VoiceError:
        raise
    except FileNotFoundError:
        raise VoiceError(f"{path}: expected a {description}, found none") from None
    # NumPy's error depends on where the bytes stop looking like an archive.
    except Exception as error:
        reason = first_line(error)
        raise VoiceError(f"{path}: not a readable {description}: {reason}") from None


def check_arrays(arrays: Mapping[str, np.ndarray], kinds: Mapping[str, str]) -> None:
    """Raise `ValueError` unless arrays are of these kinds and numbers of axes, finite,
    and have as many rows as each other."""
    rows = [array for array in arrays.values() if array.ndim]
    if (
        any(f"{a.dtype.kind}{a.ndim}" != kinds[key] for key, a in arrays.items())
        or len({len(array) for array in rows}) > 1
        or not all(np.isfinite(a).all() for a in rows if a.dtype.kind == "f")
    ):
        raise ValueError("its arrays are not those that were written")


def _refuse_larger_than_file(path: Path, most: int) -> None:
    """Raise an error if an .npz file claims arrays that are more than `most` times as
    large as what holds them: unpacking a megabyte could fill the memory."""
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.file_size > most * member.compress_size:
                raise ValueError(
                    f"{member.filename} unpacks to over {most} times its size"
                )
            with archive.open(member) as array:
                np.lib.format.read_magic(array)
                shape, _, dtype = np.lib.format.read_array_header_1_0(array)
                size = member.file_size - array.tell()
                # A row that is added to none would have the size of an item.
                if math.prod(shape) * dtype.itemsize != size or (
                    dtype.itemsize > member.file_size
                ):
                    raise ValueError(f"{member.filename} is not of the size it claims")


def composed(name: str) -> str:
    """Return a name in Unicode's composed form, with single blanks between words."""
    return unicodedata.normalize("NFC", " ".join(name.split()))


def checked_name(name: str) -> str:
    """Return a person's `composed` name; raise `VoiceError` if it is invalid."""
    name = composed(name)
    if not name.strip(JOINERS) or set(name) & set("/\\=") or not is_printable(name):
        raise VoiceError(
            f"{name!r}: expected a name of printable characters without /, \\ and ="
        )
    if name.casefold() == UNKNOWN:
        raise VoiceError(f"{name}: expected a name; this word means a stranger")
    return name


def read_people(arguments: Sequence[str]) -> dict[str, list[Path]]:
    """Return files by person. An argument is a folder with a folder for each person, or
    `NAME=file,file`.

    Raises `VoiceError` for folders without audio, and for a name that is given twice.
    """
    people: dict[str, list[Path]] = {}
    for argument in arguments:
        for name, files in _named_files(argument):
            name = checked_name(name)
            if name in people:
                raise VoiceError(f"{name}: expected each name once, got it twice")
            people[name] = files
    return people


def _named_files(argument: str) -> Iterator[tuple[str, list[Path]]]:
    folder = Path(argument)
    name, equals, files = argument.partition("=")
    if equals and not os.path.isdir(argument):  # unlike a Path's, for any length
        if not files.strip(","):
            raise VoiceError(f"{name}: expected files such as {name}=a.wav,b.wav")
        yield name, [Path(file) for file in files.split(",") if file]
        return
    try:
        homes = folders_in(folder)
    except OSError as error:
        raise VoiceError(
            f"{folder}: expected a folder of people or NAME=file,file: {error.strerror}"
        ) from None
    if not homes:
        raise VoiceError(f"{folder}: expected a folder for each person, found none")
    for home in homes:
        yield home.name, audio_below(home)


def audio_below(folder: Path) -> list[Path]:
    """Return the audio files in a folder and in those below it, in order; raise
    `VoiceError` if there are none."""
    try:
        files = sorted(audio_files(folder))
    except OSError as error:
        raise VoiceError(f"{folder}: cannot be read: {error.strerror}") from None
    if not files:
        raise VoiceError(f"{folder}: expected {AUDIO_FILES}, found none")
    return files
