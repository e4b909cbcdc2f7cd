"""Sounds as callers have them."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import RATE, tone, write
from recognition.inputs import as_list, load_sound, with_names
from speech.audio import AudioError

SOUND = (32_767 * tone(0.5)).astype(np.int16)
WAVEFORM = torch.from_numpy(SOUND) / 32768
STEREO = np.stack([SOUND, SOUND], 1)


@pytest.mark.parametrize(
    "sound",
    [
        *(SOUND, SOUND / 32768, WAVEFORM, WAVEFORM.double().requires_grad_()),
        *((SOUND, RATE), (RATE, SOUND), [WAVEFORM[None], np.int64(RATE)]),
        *((STEREO, RATE), (STEREO.T, float(RATE)), (torch.from_numpy(STEREO), RATE)),
        (torch.stack([WAVEFORM, 0 * WAVEFORM]), RATE),  # one channel is dead
        *(Path, str, Path.read_bytes, lambda path: memoryview(path.read_bytes())),
        *(lambda path: path.open("rb"), lambda path: io.BytesIO(path.read_bytes())),
    ],
)
def test_a_sound_is_the_same_however_it_is_given(tmp_path, sound):
    if callable(sound):
        sound = sound(write(tmp_path / "a.wav", SOUND))
    assert as_list(sound)[0] is sound
    assert (load_sound(sound, RATE, 0.3).samples == SOUND).all()


def test_a_rate_is_heeded():
    fast = 0.5 * tone(0.5, 44_100), 44_100
    found = load_sound(fast, RATE, 0.3).samples[100:-100] / 32768
    assert found == pytest.approx(0.5 * tone(0.5)[100:-100], abs=1e-3)


def test_sounds_have_names(tmp_path):
    path = write(tmp_path / "a.wav")
    sounds = [path, path.open("rb"), SOUND, (SOUND, RATE), b""]
    names = [str(path), str(path), "array 2", "array 3", "sound 4"]
    assert [name for name, _ in with_names(sounds)] == names


@pytest.mark.parametrize(
    ("sound", "words"),
    [
        ((np.zeros((300, 300)), RATE), r"channels.* \[300, 300\]"),
        (np.zeros((2, RATE)), r"samples \[N\].* float64 \[2, 16000\]"),
        ((np.zeros(RATE), 16), "4000 to 384000 Hz, got 16 Hz"),
        ((SOUND, float("nan")), "got nan"),
        ([0.0] * RATE, "samples, rate.* got list"),
        (7, "got int"),
        (b"RIFF", "not readable"),
        (io.StringIO("text"), "opened for bytes"),
    ],
)
def test_what_is_no_sound(sound, words):
    with pytest.raises(AudioError, match=words):
        load_sound(sound, RATE, 0.3)
