"""Enrolled people: who they are, the file that keeps them, and whom a command names.

`Clip`s by name -> `People.with_clips` -> `People` <-> people.npz
arguments -> `read_people` -> files by name

U clips, P people, E embedding size.
"""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engine.files import atomic_write
from recognition.sounds import Clip, VoiceError
from speech.corpora import EXTENSIONS, audio_files, folders_in

STORE_VERSION = 1
STORED = {
    "model": "U0",
    "digest": "U0",
    "front_end": "U0",
    "names": "U1",
    "clips": "U1",
    "clip_digests": "U1",
    "seconds": "f1",
    "vectors": "f2",
}
ROWS = [key for key, kind in STORED.items() if kind[1] != "0"]


@dataclass(frozen=True, eq=False)
class People:
    """Enrolled clips, a row for each, and the model that heard them."""

    model: str  # its file
    digest: str  # of its weights
    front_end: str  # its parameters as JSON
    names: NDArray[np.str_]  # [U], of the people
    clips: NDArray[np.str_]  # [U]
    clip_digests: NDArray[np.str_]  # [U]
    seconds: NDArray[np.float64]  # [U], of speech
    vectors: NDArray[np.float32]  # [U, E], of length 1

    def with_clips(self, name: str, clips: Sequence[Clip]) -> "People":
        """These and more clips of a person; a recording that is there counts once.

        Raises `VoiceError` for what is no name.
        """
        name = checked_name(name)
        held = set(self.clip_digests[self.names == name])
        new = list({c.digest: c for c in clips if c.digest not in held}.values())
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
        """These without a person; raise `VoiceError` if there is no such person."""
        keep = self.names != name
        if keep.all():
            raise VoiceError(
                f"{name}: expected one of the enrolled people, "
                f"{', '.join(np.unique(self.names)) or 'none'}"
            )
        rows = {key: getattr(self, key)[keep] for key in ROWS}
        return People(self.model, self.digest, self.front_end, **rows)

    def centroids(self) -> tuple[list[str], NDArray[np.float64]]:
        """Names [P] and mean directions [P, E], one of each person however many clips
        there are."""
        names, codes = np.unique(self.names, return_inverse=True)
        sums = np.zeros((len(names), self.vectors.shape[1]))
        np.add.at(sums, codes, self.vectors)
        return names.tolist(), unit(sums)

    def save(self, path: Path) -> None:
        """Write all; if that fails, an old file stays and `RunError` is raised."""
        with atomic_write(path) as file:
            np.savez(file, version=STORE_VERSION, **vars(self))


def load_people(path: Path) -> People:
    """What `People.save` wrote; nothing in the file is executed. Raises `VoiceError`
    if it cannot be read."""
    arrays = load_arrays(path, STORED, "store of people")
    return People(
        **{key: array if array.ndim else str(array) for key, array in arrays.items()}
    )


def load_arrays(
    path: Path, kinds: Mapping[str, str], what: str
) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            if file["version"] != STORE_VERSION:
                raise VoiceError(
                    f"{path}: expected a {what} of version {STORE_VERSION}, "
                    f"got {file['version']}"
                )
            arrays = {key: file[key] for key in kinds}
        rows = [array for array in arrays.values() if array.ndim]
        if (
            any(f"{a.dtype.kind}{a.ndim}" != kinds[key] for key, a in arrays.items())
            or len({len(array) for array in rows}) > 1
            or not all(np.isfinite(a).all() for a in rows if a.dtype.kind == "f")
        ):
            raise ValueError("other arrays than were written")
        return arrays
    except VoiceError:
        raise
    except FileNotFoundError:
        raise VoiceError(f"{path}: expected a {what}, found none") from None
    # What NumPy raises depends on where foreign bytes stop looking like an archive.
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise VoiceError(f"{path}: not a readable {what}: {reason}") from None


def unit(vectors: NDArray) -> NDArray:
    """Rows scaled to length 1."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.maximum(lengths, np.finfo(np.float32).tiny)


def checked_name(name: str) -> str:
    """A person's name in Unicode's composed form; raise `VoiceError` if it is none."""
    name = unicodedata.normalize("NFC", name.strip())
    if not name or set(name) & set("/\\=") or not name.isprintable():
        raise VoiceError(
            f"{name!r}: expected a name of printable characters without /, \\ and ="
        )
    return name


def read_people(arguments: Sequence[str]) -> dict[str, list[Path]]:
    """Files by person, from folders with a folder per person or `NAME=file,file`.

    Raises `VoiceError` for what holds no audio, and for two people with one name.
    """
    people: dict[str, list[Path]] = {}

    def add(name: str, files: list[Path]) -> None:
        name = checked_name(name)
        if name in people:
            raise VoiceError(f"{name}: expected a name of one person, got two")
        people[name] = files

    for argument in arguments:
        folder = Path(argument)
        name, equals, files = argument.partition("=")
        if equals and not folder.is_dir():
            add(name, [Path(file) for file in files.split(",") if file])
            if not files.strip(","):
                raise VoiceError(f"{name}: expected files such as {name}=a.wav,b.wav")
            continue
        try:
            of_people = folders_in(folder)
            files_of = {home: sorted(audio_files(home)) for home in of_people}
        except OSError as error:
            raise VoiceError(
                f"{folder}: expected a folder of people or NAME=file,file: "
                f"{error.strerror}"
            ) from None
        if not of_people:
            raise VoiceError(f"{folder}: expected a folder for each person, found none")
        for home, paths in files_of.items():
            if not paths:
                raise VoiceError(
                    f"{home}: expected {', '.join(EXTENSIONS)} files, found none"
                )
            add(home.name, paths)
    return people
