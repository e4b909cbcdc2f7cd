"""Lengths: headers that do not know them, files joined, junk between frames."""

import os
import sys

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from conftest import RATE, noise, write
from speech.audio import Segment, load_recording
from speech.quiet import without_remarks
from speech.streams import NO_SOUND, PROMISES_LESS

ONE, OTHER = noise(4.0), noise(2.0)[::-1]
OPUS = {"format": "OGG", "subtype": "OPUS"}
FORMATS = {"a.wav": {}, "a.flac": {}, "a.ogg": {}, "a.opus": OPUS, "a.mp3": {}}


def with_bytes(content: bytes, position: int, replacement: bytes) -> bytes:
    return content[:position] + replacement + content[position + len(replacement) :]


def mp3_frames(path) -> list[bytes]:
    """The frames of a file at 16 kHz: 72 bytes for each kbit/s and kHz, and a padding;
    the first counts the others."""
    content, frames = path.read_bytes(), []
    rates = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
    while content:
        size = 72 * rates[content[2] >> 4] // 16 + (content[2] >> 1 & 1)
        frames.append(content[:size])
        content = content[size:]
    assert b"Info" in frames[0] or b"Xing" in frames[0]
    return frames


@pytest.mark.parametrize(
    ("name", "position", "replacement", "said"),
    [
        ("a.flac", 22, bytes(4), None),  # as a pipe leaves it
        ("a.flac", 22, (2 * RATE).to_bytes(4, "big"), PROMISES_LESS),
        ("a.wav", 40, bytes(4), PROMISES_LESS),
        ("a.wav", 40, (4 * RATE).to_bytes(4, "little"), PROMISES_LESS),
    ],
)
def test_headers_that_do_not_know_the_length(
    tmp_path, name, position, replacement, said
):
    path = write(tmp_path / name, ONE)
    path.write_bytes(with_bytes(path.read_bytes(), position, replacement))
    recording = load_recording(path, RATE)
    assert recording.warning == said
    assert_array_equal(recording.samples, ONE)
    assert_array_equal(load_recording(Segment(path, 3.0), RATE).samples, ONE[-RATE:])


@pytest.mark.parametrize("name", FORMATS)
def test_joined_files_are_read_to_the_end(tmp_path, name):
    paths = [tmp_path / "1" / name, tmp_path / "2" / name]
    for path, samples in zip(paths, (ONE, OTHER), strict=True):
        write(path, samples, **FORMATS[name])
    parts = [load_recording(path, RATE) for path in paths]
    joined = tmp_path / name
    joined.write_bytes(b"".join(path.read_bytes() for path in paths))
    recording = load_recording(joined, RATE)
    assert {part.warning for part in parts} == {None}
    assert recording.warning == "2 recordings joined in one file"
    expected = np.concatenate([part.samples for part in parts])
    assert_array_equal(recording.samples, expected)
    across = load_recording(Segment(joined, 3.5, 1.0), RATE)
    assert len(across.samples) == RATE
    assert load_recording(Segment(joined, 4.5, 1.0), RATE).warning is None
    joined.write_bytes(joined.read_bytes()[:-99])
    if name != "a.flac":
        assert load_recording(joined, RATE).warning.startswith("cut short")


def test_mp3_without_its_number_of_frames(tmp_path):
    path = write(tmp_path / "a.mp3", ONE)
    whole, (first, *frames) = load_recording(path, RATE).samples, mp3_frames(path)
    place = max(first.find(b"Info"), first.find(b"Xing"))
    for start in (b"", with_bytes(first, place + 8, bytes(4))):
        path.write_bytes(start + b"".join(frames))
        recording = load_recording(path, RATE)
        assert recording.warning is None
        assert len(recording.samples) == 576 * len(frames) - 529  # a decoder's delay
        path.write_bytes(path.read_bytes()[:-9])
        assert load_recording(path, RATE).warning.startswith("cut short")
    path.write_bytes(with_bytes(first, place + 8, b"\0\0\0\x14") + b"".join(frames))
    recording = load_recording(path, RATE)
    assert recording.warning == PROMISES_LESS
    assert_array_equal(recording.samples, whole)


def test_junk_between_mp3_frames(tmp_path, capfd):
    path = write(tmp_path / "a.mp3", ONE)
    whole, frames = load_recording(path, RATE).samples, mp3_frames(path)
    tag = b"ID3\3\0\0\0\0\1\0" + bytes(128)
    for junk, said in ((b"\xff\0" * 999, f"1998 {NO_SOUND}"), (tag, None)):
        path.write_bytes(
            b"".join([*frames[:50], junk, *frames[50:], b"TAG", bytes(125)])
        )
        recording = load_recording(path, RATE)
        assert recording.warning == said
        assert_array_equal(recording.samples, whole)
    assert capfd.readouterr().err == ""


def test_a_decoder_s_remarks_are_dropped_and_nothing_else(capfd):
    with without_remarks():
        print("10 %\r", end="", file=sys.stderr)
        os.write(2, b"Note: Trying to resync...\n[src/libmpg123/parse.c] error: a\n\nb")
    print("c", file=sys.stderr)
    assert capfd.readouterr().err == "10 %\r\nbc\n"
