"""Another encoder's vectors of the training recordings, from which a student learns.

`voices.py embed` -> vectors.npz -> `load_teacher` -> targets [U, E]

The teacher hears whole recordings as they are, the student crops of them in rooms and
noise. U training utterances, E embedding size of the student, T of the teacher.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath

import numpy as np
import torch
from torch import Tensor

from dataset import Splits
from engine.files import file_digest
from parameters import ParameterError, Parameters
from recognition.people import load_arrays
from recognition.sounds import VoiceError
from recognition.vectors import load_vectors
from speech.corpora import utterances

KEY = "training.teacher.vectors"
ARRAYS = {"path": "U1", "vector": "f2"}  # with their kinds and numbers of axes


def load_teacher(parameters: Parameters, splits: Splits) -> Tensor | None:
    """Return a unit vector for each training utterance, [U, E], in the order of
    `splits.trained`; None without a teacher.

    The vectors are centred by their mean. Those of a larger teacher are reduced to
    their principal components, which keeps their cosines as well as any linear map can;
    those of a smaller one are filled up with zeros. Raises `ParameterError` if an
    utterance has no vector, or shares it with another.
    """
    teacher, size = parameters.training.teacher, parameters.model.embedding_size
    if not teacher.vectors:
        return None
    rows: dict[PurePath, np.ndarray] = {}
    for file in teacher.vectors:
        rows |= _mean_vectors(file)
    if len(sizes := {len(vector) for vector in rows.values()}) != 1:
        raise ParameterError(f"{KEY}: expected vectors of one size, got {sizes}")
    sources = {u.id: u.source for u in utterances(parameters.dataset)}
    ids = [splits.pack.entries[i].id for i in splits.trained]
    names = _rows_of([sources[id] for id in ids], rows)
    vectors = _units(np.stack([rows[name] for name in names]))
    vectors = _units(vectors - vectors.mean(0))
    if vectors.shape[1] > size:
        _, components = np.linalg.eigh(vectors.T @ vectors)  # ascending
        vectors = _units(vectors @ components[:, : -size - 1 : -1])
    missing = size - vectors.shape[1]
    targets = np.pad(vectors, ((0, 0), (0, missing)))
    return torch.from_numpy(targets).float()


def teacher_digests(parameters: Parameters) -> dict[str, str]:
    """Return the digest of each file of vectors by its number, for resuming."""
    files = parameters.training.teacher.vectors
    return {f"{KEY}.{number}": file_digest(f) for number, f in enumerate(files)}


def _mean_vectors(file: Path) -> dict[PurePath, np.ndarray]:
    """Return the vector of each recording in a file; that of a recording with several
    rows, its windows, is their mean."""
    try:
        if file.suffix == ".parquet":
            table = load_vectors(file)
        else:  # those of other programs hold less than load_vectors wants
            table = load_arrays(file, ARRAYS, "file of vectors", of_others=True)
    except VoiceError as error:
        raise ParameterError(f"{KEY}: {error}") from None
    paths, vectors = table["path"], table["vector"]
    names, inverse, counts = np.unique(paths, return_inverse=True, return_counts=True)
    means = np.zeros((len(names), vectors.shape[1]))
    np.add.at(means, inverse, _units(vectors.astype(np.float64)))
    means /= counts[:, None]
    return {PurePath(name): mean for name, mean in zip(names, means, strict=True)}


def _rows_of(
    sources: Sequence[object], rows: Mapping[PurePath, np.ndarray]
) -> list[PurePath]:
    """Return the row of each source file: that whose path is the longest end of the
    file's path."""
    chosen: dict[PurePath, Path] = {}
    for source in sources:
        if not isinstance(source, Path):
            raise ParameterError(
                f"{KEY}: expected whole files to train on, got parts of files, or "
                "synthetic voices"
            )
        parts = source.absolute().parts
        ends = (PurePath(*parts[n:]) for n in range(1, len(parts)))
        row = next((end for end in ends if end in rows), None)
        if row is None:
            raise ParameterError(f"{KEY}: expected a vector for {source}, found none")
        if other := chosen.get(row):
            raise ParameterError(
                f"{KEY}: expected one recording named {row}, got {other} and {source}; "
                "embed a folder further up, so that paths differ"
            )
        chosen[row] = source
    return list(chosen)


def _units(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.maximum(lengths, 1e-12)
