"""Embed all recordings in a folder, for other programs.

folder, files -> `embed_folder` -> vectors.npz or vectors.parquet

A recording has a row: path, begin and end in seconds, vector. A recording of more than
two minutes has a row for each window of a minute. Rows are saved every minute. They
hold the size, time and digest of the file, so a later call embeds only recordings that
are new or have changed, and removes the rows of those that are gone.
"""

import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from dataset import windows
from engine.files import file_digest
from recognition.sounds import NO_SPEECH, VoiceError
from recognition.vectors import (
    ROWS,
    STAMPS,
    load_vectors,
    no_vectors,
    save_vectors,
)
from speech.packs import Entry
from speech.samples import Samples
from voices import Voices

FILES_AT_ONCE = 64
SECONDS_BETWEEN_SAVES = 60.0
UNKNOWN_STAMP = (-1, -1, "")  # of no file: the recording is embedded anew next time
Row = tuple[str, float, float]  # path below the folder, begin and end in seconds


def embed_folder(voices: Voices, folder: Path, files: Sequence[Path], out: Path) -> str:
    """Bring the rows of `out` up to date with these files in a folder, and return a
    line that counts them.

    Recordings that cannot be used are skipped, with a line on stderr. Raises
    `VoiceError` if all of them are skipped, and if `out` is of another model.
    """
    saved = _load_rows(voices, out)
    named = {_row_name(file, folder, voices.channel): file for file in files}
    before = set(saved["path"].tolist())
    kept = _unchanged(saved, named)
    current = set(kept["path"].tolist())
    missing = [file for name, file in named.items() if name not in current]
    tables, saved_at, embedded = [kept], time.monotonic(), set()
    with tqdm(
        total=len(missing), desc="recordings", unit="file", leave=False
    ) as progress:
        for start in range(0, len(missing), FILES_AT_ONCE):
            chosen = missing[start : start + FILES_AT_ONCE]
            tables.append(_embed_files(voices, folder, chosen))
            embedded |= set(tables[-1]["path"].tolist())
            progress.update(len(chosen))
            if time.monotonic() - saved_at > SECONDS_BETWEEN_SAVES:
                tables = [save_vectors(out, tables)]
                saved_at = time.monotonic()
    if not current | embedded:
        raise VoiceError(f"{folder}: expected speech, none of its files can be used")
    rows = save_vectors(out, tables)
    counts = {
        "recordings changed": len(embedded & before),
        "recordings gone": len(before - set(named)),
        "files skipped": len(missing) - len(embedded),
    }
    return (
        f"{out}: {len(rows['path'])} vectors of {len(set(rows['path']))} recordings, "
        f"{len(embedded - before)} recordings new"
        + "".join(f", {count} {what}" for what, count in counts.items() if count)
    )


def _row_name(file: Path, folder: Path, channel: int | None) -> str:
    """Return the path below the folder, with `#1` after it for channel 1; bytes that
    are not UTF-8 are escaped."""
    name = os.fsencode(file.relative_to(folder)).decode(errors="backslashreplace")
    return name if channel is None else f"{name}#{channel}"


def _unchanged(
    saved: Mapping[str, np.ndarray], named: Mapping[str, Path]
) -> dict[str, np.ndarray]:
    """Return the rows of those files whose content is that of their row.

    A file of the same size and time counts as unchanged; otherwise its digest decides.
    """
    rows = {key: saved[key].copy() for key in saved}
    keep = np.zeros(len(rows["path"]), bool)
    for name, of_file in _rows_by_name(rows["path"]).items():
        if name not in named:
            continue
        size, changed, digest = (rows[key][of_file[0]] for key in STAMPS)
        with suppress(OSError):  # the file is skipped later
            now = _size_and_time(named[name])
            if now == (size, changed) or (
                now[0] == size and digest == file_digest(named[name])
            ):
                keep[of_file], rows["changed"][of_file] = True, now[1]
    return rows | {key: rows[key][keep] for key in ROWS}


def _rows_by_name(names: NDArray[np.str_]) -> dict[str, list[int]]:
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(names.tolist()):
        rows.setdefault(name, []).append(row)
    return rows


def _size_and_time(file: Path) -> tuple[int, int]:
    """Return the bytes of a file, and the last change in nanoseconds: copying and
    unpacking may set the time of writing, but not that of the inode."""
    state = file.stat()
    return state.st_size, max(state.st_mtime_ns, state.st_ctime_ns)


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
    size, expected = rows["vector"].shape[1], voices.model.encoder.embedding_size
    if size != expected:
        raise VoiceError(f"{out}: expected vectors of {expected} numbers, got {size}")
    return rows


def _embed_files(
    voices: Voices, folder: Path, files: Sequence[Path]
) -> dict[str, np.ndarray]:
    """Return a table with the rows of those files that can be used."""
    rows, vectors, stamps = [], [], {}
    for file in files:
        with suppress(OSError):  # skipped below, if it cannot be decoded either
            stamp = (*_size_and_time(file), file_digest(file))
            stamps[_row_name(file, folder, voices.channel)] = stamp
    for row, vector in voices.embed_labelled(_pieces(voices, folder, files)):
        rows.append((*row, *stamps.get(row[0], UNKNOWN_STAMP)))
        vectors.append(vector)
    size = voices.model.encoder.embedding_size
    table = no_vectors(voices.name, voices.digest, size)
    if rows:
        columns = map(np.array, zip(*rows, strict=True))
        table |= dict(zip(("path", "begin", "end", *STAMPS), columns, strict=True))
        table["vector"] = np.stack(vectors)
    return table


def _pieces(
    voices: Voices, folder: Path, files: Sequence[Path]
) -> Iterator[tuple[Row, Samples]]:
    """Yield a row and its speech for each recording, or for each window of a long one
    that holds speech; print why a file cannot be used."""
    rate = voices.sample_rate
    for file in files:
        try:
            spoken = voices.read(str(file), file)
            if not spoken.stretches:
                raise VoiceError(f"{file}: expected speech, {NO_SPEECH}")
        except VoiceError as error:
            tqdm.write(f"skipped {error}", file=sys.stderr)
            continue
        for line in spoken.warnings:
            voices.warn(line)
        path = _row_name(file, folder, voices.channel)
        whole = Entry(path, "", None, None, None, 0, len(spoken.samples))
        for begin, end in windows(whole, rate):
            part = spoken.part(begin, end)
            if part.stretches:
                yield (path, begin / rate, end / rate), part.heard(voices.min_seconds)
