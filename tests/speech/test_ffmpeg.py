"""Formats that only ffmpeg decodes: a program in its place, itself, and neither."""

import os
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from conftest import RATE, noise, write
from speech import ffmpeg
from speech.audio import AudioError, Segment, load_recording

CHANNELS = np.stack([noise(), noise() // 2], axis=1)


@pytest.fixture
def foreign(tmp_path, monkeypatch):
    """A file that libsndfile does not read, in the working directory."""
    monkeypatch.chdir(tmp_path)
    Path("-x:y.m4a").write_bytes(b"\0\0\0\x20ftypM4A " + bytes(99))
    return Path("-x:y.m4a")


@pytest.fixture
def program(foreign, monkeypatch):
    """Put a shell script in the place of ffmpeg."""
    if os.name == "nt":
        pytest.skip("a shell is needed")

    def install(script: str) -> None:
        path = Path("bin/ffmpeg").absolute()
        path.parent.mkdir()
        path.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > arguments\n{script}\n')
        path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{path.parent}:/usr/bin:/bin")

    return install


def test_what_the_program_writes_is_read(program, foreign):
    program('cat sound.au; echo "[aac @ 0x1] it ends early" >&2')
    write(Path("sound.au"), CHANNELS / 32768, 2 * RATE, subtype="FLOAT")
    recording = load_recording(Segment(foreign, 6.5, 1.0, channel=1), 2 * RATE)
    assert_array_equal(recording.samples, CHANNELS[:, 1])
    assert (recording.rate, recording.warning[-21:]) == (
        2 * RATE,
        "ffmpeg: it ends early",
    )
    words = Path("arguments").read_text().splitlines()
    given = dict(pairwise(words))
    assert given["-i"] == f"file:{foreign.absolute()}"
    assert given["-protocol_whitelist"] == "file"
    seeks = [words[i + 1] for i, word in enumerate(words) if word == "-ss"]
    assert seeks == ["1.500000", "5.000000"]  # what lies between is decoded
    assert given["-t"] == "1.000000"
    assert {"-nostdin", "-vn"} <= set(words)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("exec sleep 60", "gave nothing for 0.2 s"),
        ('echo "[in#0 @ 0x1] no atom" >&2; echo more >&2; exit 1', "audio: no atom"),
        ("exit 0", "finds no sound"),
    ],
)
def test_programs_that_fail(program, foreign, monkeypatch, script, said):
    monkeypatch.setattr(ffmpeg, "MAX_WAIT", 0.2)
    program(script)
    with pytest.raises(AudioError, match=said):
        load_recording(foreign, RATE)


def test_without_the_program_a_line_says_how_to_convert(foreign, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(AudioError, match=r"\.mp3 files .* ffmpeg -i x\.m4a x\.wav$"):
        load_recording(foreign, RATE)


@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="ffmpeg is not on the path")
@pytest.mark.parametrize("name", ["a.m4a", "a.mka", "a.wma", "a.aac"])
def test_ffmpeg_itself(tmp_path, name):
    source = write(tmp_path / "a.wav", noise(8.0))
    path = tmp_path / name
    subprocess.run(["ffmpeg", "-v", "error", "-i", source, path], check=True)
    recording = load_recording(path, RATE)
    assert recording.warning is None
    assert len(recording.samples) == pytest.approx(8 * RATE, abs=RATE / 4)
    part = load_recording(Segment(path, 2.0, 1.0), RATE).samples
    assert len(part) == pytest.approx(RATE, abs=100)
