"""Folders on disk to utterances, and how names and tables in them are read.

<root>/<speaker>/**, or <root>/train, development and test with such folders
"""

import csv
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from parameters import DatasetParameters
from speech.audio import EXTENSIONS
from speech.utterances import SPEAKER_SPLITS, CorpusError, Utterance

AUDIO_FILES = f"{', '.join(EXTENSIONS[:5])} or other audio files"


def scan_folder(parameters: DatasetParameters) -> Iterator[Utterance]:
    """Yield the utterances of a folder of speakers, or of a folder for each split; if
    they are not labelled, all recordings below it, each with a speaker of its own."""
    root = parameters.root
    expect_folder(root, "the folder of dataset.root")
    if not parameters.labelled:
        found = recordings_below(root, lambda path: True)
        yield from (replace(utterance, speaker=utterance.id) for utterance in found)
        return
    genders = _speaker_genders(root / "speakers.csv")
    folders = folders_in(root)
    split_folders = [folder for folder in folders if folder.name in SPEAKER_SPLITS]
    others = [folder.name for folder in folders if folder.name not in SPEAKER_SPLITS]
    if split_folders and others:
        raise CorpusError(
            f"{root}: expected no other folder beside {split_folders[0].name}, "
            f"found {others[0]}"
        )
    holds_test = any(folder.name == "test" for folder in split_folders)
    for home in split_folders or [root]:
        split = home.name if split_folders else None
        if split == "train" and not holds_test:
            split = None  # the test speakers will be drawn from it
        paths = [
            (quoted(folder.name), path)
            for folder in folders_in(home)
            for path in audio_files(folder)
        ]
        if not paths:
            raise CorpusError(
                f"{home}: expected <speaker>/** with {AUDIO_FILES}, found none"
            )
        for speaker, path in paths:
            name = quoted(path.relative_to(root).as_posix())
            yield Utterance(name, speaker, path, split, genders.get(speaker))


def _speaker_genders(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    rows = table_rows(path, ("speaker",))
    return known_genders(
        (quoted(row["speaker"]), row.get("gender", "")) for row in rows
    )


def recordings_below(root: Path, wanted: Callable[[Path], bool]) -> list[Utterance]:
    """Return the audio files below a folder whose relative paths are `wanted`, in
    order; raise `CorpusError` if there are none."""
    try:
        paths = [path.relative_to(root) for path in audio_files(root)]
    except OSError as error:
        where = error.filename or root
        raise CorpusError(f"{where}: cannot be used: {error.strerror}") from None
    names = sorted(path for path in paths if wanted(path))
    if not names:
        raise CorpusError(f"{root}: expected {AUDIO_FILES}, found none")
    return [Utterance(quoted(n.as_posix()), n.parts[0], root / n) for n in names]


def expect_folder(path: Path, description: str) -> None:
    """Raise `CorpusError` if a path is no folder."""
    if not path.is_dir():
        actual = "a file" if path.exists() else "nothing"
        raise CorpusError(f"{path}: expected {description}, found {actual}")


def folders_in(folder: Path) -> list[Path]:
    """Return the visible folders directly in a folder, sorted."""
    return sorted(path for path in _visible(folder) if path.is_dir())


def audio_files(folder: Path) -> Iterator[Path]:
    """Yield the visible audio files at any depth below a folder.

    Links to folders are followed, but no folder twice, and none that holds this one.
    """
    followed = set(map(str, Path(os.path.realpath(folder)).parents))
    folders, links = [folder], []
    while folders or links:
        home = (folders or links).pop(0)
        if (real := os.path.realpath(home)) in followed:
            continue
        followed.add(real)
        for path in sorted(_visible(home)):
            if path.is_dir():
                (links if path.is_symlink() else folders).append(path)
            elif path.suffix.lower() in EXTENSIONS:
                yield path


def _visible(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if not path.name.startswith(".")]


def quoted(name: str) -> str:
    """Percent-encode what a trial list cannot hold: whitespace, % and bytes that are
    not UTF-8. Letters of every script stay."""
    return re.sub(
        r"[\s%\ud800-\udfff]",
        lambda match: quote(match[0], errors="surrogateescape"),
        name,
    )


def table_rows(
    path: Path, wanted: Sequence[str], **options: Any
) -> Iterator[dict[str, str]]:
    """Yield the rows of a CSV table by column name; raise `CorpusError` if it lacks a
    wanted column."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restval="", **options)
            columns = reader.fieldnames or ()
            if not set(wanted) <= set(columns):
                raise CorpusError(
                    f"{path}: expected columns {' and '.join(wanted)}, "
                    f"found {', '.join(columns) or 'none'}"
                )
            yield from reader
    except (csv.Error, UnicodeDecodeError) as error:
        raise CorpusError(f"{path}: expected CSV in UTF-8: {error}") from None


def known_genders(rows: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the gender of each speaker for whom it is `f` or `m`, or `F` or `M`."""
    lowered = {speaker: gender.strip().lower() for speaker, gender in rows}
    return {
        speaker: gender for speaker, gender in lowered.items() if gender in ("f", "m")
    }
