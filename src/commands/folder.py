"""Embed all recordings in a folder, for other programs.

folder, files -> `embed_folder` -> vectors.npz or vectors.parquet

A recording has a row: path, begin and end in seconds, vector. A recording of more than
two minutes has a row for each window of a minute. Rows are saved every minute, and a
later call embeds only the recordings that are missing.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from dataset import windows
from recognition.sounds import VoiceError
from recognition.vectors import load_vectors, no_vectors, save_vectors
from speech.packs import Entry
from voices import Voices

FILES_AT_ONCE = 64
SECONDS_BETWEEN_SAVES = 60.0
Row = tuple[str, float, float]  # path below the folder, begin and end in seconds


def embed_folder(voices: Voices, folder: Path, files: Sequence[Path], out: Path) -> str:
    """Add rows to `out` for those files in a folder that have none yet, and return a
    line that counts them.

    Recordings that cannot be used are skipped, with a line on stderr. Raises
    `VoiceError` if all of them are skipped, and if `out` is of another model.
    """
    saved = _load_rows(voices, out)
    finished = set(saved["path"])
    missing = [file for file in files if str(file.relative_to(folder)) not in finished]
    tables, saved_at, num_skipped = [saved], time.monotonic(), 0
    with tqdm(
        total=len(missing), desc="recordings", unit="file", leave=False
    ) as progress:
        for start in range(0, len(missing), FILES_AT_ONCE):
            chosen = missing[start : start + FILES_AT_ONCE]
            table = _embed_files(voices, folder, chosen)
            tables.append(table)
            num_skipped += len(chosen) - len(set(table["path"]))
            progress.update(len(chosen))
            if time.monotonic() - saved_at > SECONDS_BETWEEN_SAVES:
                tables = [save_vectors(out, tables)]
                saved_at = time.monotonic()
    if num_skipped == len(files):
        raise VoiceError(f"{folder}: expected speech, none of its files can be used")
    rows = save_vectors(out, tables)
    skipped = f", {num_skipped} files skipped" if num_skipped else ""
    return (
        f"{out}: {len(rows['path'])} vectors of {len(set(rows['path']))} recordings, "
        f"{len(missing) - num_skipped} recordings new{skipped}"
    )


def _load_rows(voices: Voices, out: Path) -> dict[str, np.ndarray]:
    if not out.exists():
        size = voices.model.encoder.embedding_size
        return no_vectors(voices.name, voices.digest, size)
    rows = load_vectors(out)
    if rows["digest"] != voices.digest:
        raise VoiceError(
            f"{out}: expected vectors of {voices.name}, got those of {rows['model']}; "
            "name another file"
        )
    return rows


def _embed_files(
    voices: Voices, folder: Path, files: Sequence[Path]
) -> dict[str, np.ndarray]:
    """Return a table with the rows of those files that can be used."""
    rows, vectors = [], []
    for row, vector in voices.embed_labelled(_pieces(voices, folder, files)):
        rows.append(row)
        vectors.append(vector)
    size = voices.model.encoder.embedding_size
    table = no_vectors(voices.name, voices.digest, size)
    if rows:
        columns = map(np.array, zip(*rows, strict=True))
        table |= dict(zip(("path", "begin", "end"), columns, strict=True))
        table["vector"] = np.stack(vectors)
    return table


def _pieces(
    voices: Voices, folder: Path, files: Sequence[Path]
) -> Iterator[tuple[Row, NDArray[np.int16]]]:
    """Yield a row and its samples for each recording, or for each window of a long one;
    print why a file cannot be used."""
    rate = voices.sample_rate
    for file in files:
        try:
            samples = voices.read(str(file), file).samples
        except VoiceError as error:
            tqdm.write(f"skipped {error}", file=sys.stderr)
            continue
        path = str(file.relative_to(folder))
        whole = Entry(path, "", None, None, None, 0, len(samples))
        for begin, end in windows(whole, rate):
            yield (path, begin / rate, end / rate), samples[begin:end]
