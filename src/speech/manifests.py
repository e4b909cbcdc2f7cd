"""NVIDIA NeMo's manifests to utterances. Each line is a JSON object, one utterance.

    {"audio_filepath": "a.wav", "label": "speaker", "offset": 1.5, "duration": 2.0}

Paths start at the manifest's folder. Offset and duration, in seconds, may be left out,
and so may the channel, which counts from 0.
"""

import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from parameters import DatasetParameters
from speech.audio import Segment
from speech.folders import quoted
from speech.utterances import CorpusError, Utterance


def scan_manifests(parameters: DatasetParameters) -> Iterator[Utterance]:
    """Yield the utterances of one manifest for each split."""
    manifests = parameters.manifest
    home = manifests.train.parent  # ids are the paths of audio files relative to it
    for split, path in manifests:
        if path is None:
            continue
        if split == "train" and not manifests.test:
            split = None  # the test speakers will be drawn from it
        segments = list(read_manifest(path))
        if not segments:
            raise CorpusError(f"{path}: expected a line for each utterance, found none")
        for speaker, segment in segments:
            name = quoted(os.path.relpath(segment.path, home))
            if segment.offset or segment.duration is not None:
                name += f"@{segment.offset}"
            if segment.duration is not None:
                name += f"+{segment.duration}"
            if segment.channel is not None:
                name += f"#{segment.channel}"
            yield Utterance(name, speaker, segment, split)


def _is_name(value: Any) -> bool:
    # A name holds no half of a surrogate pair, except \udc80 to \udcff: with these
    # Python represents the bytes of names that are not UTF-8.
    halves = "\ud800-\udc7f\udd00-\udfff"
    return isinstance(value, str) and bool(re.fullmatch(f"[^{halves}]+", value))


def _is_offset(value: Any) -> bool:
    return isinstance(value, float) and 0 <= value < math.inf


def _is_duration(value: Any) -> bool:
    return value is None or (_is_offset(value) and value > 0)


def _is_channel(value: Any) -> bool:
    return value is None or (_is_offset(value) and value.is_integer())


MANIFEST_KEYS = (
    ("audio_filepath", "a path", _is_name),
    ("label", "the name of a speaker", _is_name),
    ("offset", "seconds of at least 0", _is_offset),
    ("duration", "seconds above 0 or null", _is_duration),
    ("channel", "a number from 0 or null", _is_channel),
)


def read_manifest(path: Path) -> Iterator[tuple[str, Segment]]:
    """Yield the speaker and the segment of each line; raise `CorpusError` naming file
    and line."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        for number, line in enumerate(file, 1):
            try:
                values = json.loads(line, parse_int=float)
            except (ValueError, RecursionError):
                values = None
            if not isinstance(values, dict):
                raise CorpusError(
                    f"{path}:{number}: expected a JSON object, "
                    f"found {line.strip()[:80]!r}"
                )
            values = {"offset": 0.0, "duration": None, "channel": None} | values
            for key, expected, fits in MANIFEST_KEYS:
                if not fits(values.get(key)):
                    actual = repr(values[key]) if key in values else "none"
                    raise CorpusError(
                        f"{path}:{number}: expected {key}, {expected}, found {actual}"
                    )
            audio = path.parent / values["audio_filepath"]
            channel = None if values["channel"] is None else int(values["channel"])
            segment = Segment(audio, values["offset"], values["duration"], channel)
            yield quoted(values["label"]), segment
