"""Vectors of many recordings in a file, for other programs.

rows <-> `save_vectors`, `load_vectors` <-> vectors.npz or vectors.parquet

A row is a recording, or a window of a long one: path, begin and end in seconds, vector,
and the size, time and digest of the file, which tell whether it has changed.
All rows are of one model, whose name and digest the file holds. Parquet needs pyarrow,
an optional package: init/requirements-parquet.txt. U rows, E embedding size.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from engine.files import atomic_write
from errors import first_line
from recognition.people import STORE_VERSION, check_arrays, load_arrays
from recognition.sounds import VoiceError

ARRAYS = {  # in the file, with their kinds and numbers of axes
    "model": "U0",
    "digest": "U0",
    "path": "U1",
    "begin": "f1",
    "end": "f1",
    "bytes": "i1",
    "changed": "i1",  # nanoseconds since 1970
    "digest_of_file": "U1",
    "vector": "f2",
}
STAMPS = ("bytes", "changed", "digest_of_file")  # files of earlier versions have none
ROWS = [key for key, kind in ARRAYS.items() if kind[1] != "0"]
NAMES = [key for key in ARRAYS if key not in ROWS]
TEXTS = [key for key, kind in ARRAYS.items() if kind == "U1"]
ARROW_TYPES = {"f1": "float64", "i1": "int64"}
MAX_RATIO = 100  # of rows in memory and in a file of Parquet


def no_vectors(model: str, digest: str, size: int) -> dict[str, np.ndarray]:
    """Return an empty table for a model with embeddings of this size."""
    return {
        "model": np.array(model),
        "digest": np.array(digest),
        "path": np.empty(0, "U1"),
        "begin": np.empty(0),
        "end": np.empty(0),
        **_no_stamps(0),
        "vector": np.empty((0, size), np.float32),
    }


def _no_stamps(num_rows: int) -> dict[str, np.ndarray]:
    unknown = np.full(num_rows, -1)
    values = unknown, unknown.copy(), np.full(num_rows, "")
    return dict(zip(STAMPS, values, strict=True))


def refuse_format(path: Path) -> None:
    """Raise `VoiceError` for a file name of neither format, or if pyarrow is
    missing."""
    if path.suffix == ".parquet":
        _pyarrow(path)
    elif path.suffix != ".npz":
        raise VoiceError(f"{path}: expected a file named .npz or .parquet")


def _pyarrow(path: Path) -> tuple[ModuleType, ModuleType]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise VoiceError(
            f"{path}: expected pyarrow, which is not installed: "
            "pip install -r init/requirements-parquet.txt"
        ) from None
    return pyarrow, parquet


def load_vectors(path: Path) -> dict[str, np.ndarray]:
    """Read what `save_vectors` wrote; raise `VoiceError` if it cannot be read."""
    if path.suffix == ".npz":
        rows = load_arrays(path, ARRAYS, "file of vectors", optional=STAMPS)
        return _no_stamps(len(rows["path"])) | rows
    _, parquet = _pyarrow(path)
    try:
        most = MAX_RATIO * path.stat().st_size  # bytes of rows in memory
        metadata = parquet.read_metadata(path)
        description = metadata.metadata
        size = int(description[b"size"])
        groups = map(metadata.row_group, range(metadata.num_row_groups))
        unpacked = sum(group.total_byte_size for group in groups)
        if max(unpacked, 4 * size * metadata.num_rows) > most:
            raise ValueError("its rows are much larger than the file")
        # As a dictionary, a text of many rows is held once.
        table = parquet.read_table(path, read_dictionary=TEXTS)
        columns = {
            key: _texts(table[key], most)
            if key in TEXTS
            else table[key].cast(ARROW_TYPES[ARRAYS[key]]).to_numpy()
            for key in ROWS[:-1]
            if key in table.column_names or key not in STAMPS
        }
        vectors = table["vector"].combine_chunks().flatten().to_numpy()
        rows = _no_stamps(len(table)) | columns
        rows |= {key: np.array(description[key.encode()].decode()) for key in NAMES}
        rows["vector"] = vectors.reshape(-1, size).astype(np.float32)
        check_arrays(rows, ARRAYS)
        return rows
    except Exception as error:  # Arrow's depends on which bytes are damaged
        reason = first_line(error)
        raise VoiceError(f"{path}: not a readable file of vectors: {reason}") from None


def _texts(column: Any, most: int) -> np.ndarray:
    """Return the texts of a column; raise `ValueError` if an array of them, which are
    all as long as the longest, would take more than `most` bytes."""
    longest = max(
        (max(map(len, c.dictionary.to_pylist())) for c in column.chunks if len(c)),
        default=0,
    )
    if column.null_count or 4 * longest * len(column) > most:
        raise ValueError("its texts are missing or much larger than the file")
    return np.array(column.to_pylist(), dtype=np.str_)


def save_vectors(
    path: Path, tables: Sequence[Mapping[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Write the rows of all tables and return them as one table; if writing fails, an
    old file stays as it was."""
    rows = dict(tables[0])
    for key in ROWS:
        rows[key] = np.concatenate([table[key] for table in tables])
    if path.suffix == ".npz":
        with atomic_write(path) as file:
            np.savez(file, version=STORE_VERSION, **rows)
        return rows
    pyarrow, parquet = _pyarrow(path)
    size = rows["vector"].shape[1]
    table = pyarrow.table(
        {
            "path": rows["path"].tolist(),
            "begin": rows["begin"],
            "end": rows["end"],
            **{key: rows[key].tolist() for key in STAMPS},
            "vector": pyarrow.FixedSizeListArray.from_arrays(
                rows["vector"].ravel(), size
            ),
        }
    ).replace_schema_metadata(
        {"model": str(rows["model"]), "digest": str(rows["digest"]), "size": str(size)}
    )
    with atomic_write(path) as file:
        parquet.write_table(table, file)
    return rows
