"""What is wrong with a recording, where it holds speech, and what is made of both."""

import numpy as np
import pytest
import soundfile
import torch

from conftest import RATE, noise, said, tone
from speech import examination
from speech.audio import AudioError, Recording
from speech.examination import examine, find_speech, join_speech

SAID = said(0, 0).astype(np.float64)
PAUSE = np.random.default_rng(0).normal(0, 3, 5 * RATE)


def recorded(samples, rate=RATE) -> Recording:
    return Recording(samples.round().clip(-32768, 32767).astype(np.int16), rate)


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        (np.zeros(RATE), "silence"),
        (np.full(RATE, 9000), "silence"),  # an offset is no sound
        (PAUSE, "silence"),
        (np.concatenate([PAUSE, [30_000.0], PAUSE]), "silence"),  # nor is a click
        (SAID * 100, "clipping throughout"),
        (np.full(RATE, 1e9) * np.sign(tone(1)), "clipping throughout"),
        ((SAID * 100).clip(-9000, 9000), "clipping throughout"),  # and made quieter
    ],
)
def test_speech_that_cannot_be_used(samples, words):
    with pytest.raises(AudioError, match=words):
        examine(recorded(samples), RATE)
    if words == "clipping throughout":
        (doubt,) = examine(recorded(samples), RATE, is_speech=False)
        assert doubt.startswith("clipped, ")


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        (SAID, []),
        (SAID / 100, []),
        (SAID * 4, ["clipped"]),
        ((SAID * 4).clip(-32768, 32767) / 3, ["clipped"]),
        (SAID + 0.01 * 32768, ["DC offset, +0.010"]),
        (np.concatenate([PAUSE, SAID - 2000]), ["DC offset, -0.061", "long pauses"]),
        (noise(), ["steady like noise"]),
        (9000 * tone(2), ["steady like noise"]),
    ],
)
def test_speech_that_is_doubtful(samples, words):
    doubts = examine(recorded(samples), RATE)
    assert [d[: len(w)] for d, w in zip(doubts, words, strict=True)] == words


def test_speech_at_8_khz_is_narrow_at_16_khz():
    low = said(0, 0, 8000)
    wide = examination.resampled(torch.from_numpy(low).float(), 1, 2).numpy()
    assert examine(recorded(wide), RATE) == [examination.NARROW_BAND]
    assert examine(Recording(low, 8000), 8000) == []


def test_an_impulse_response_may_be_short():
    click = np.zeros(400)
    click[3] = 30_000
    assert examine(recorded(click), RATE, is_speech=False) == []


def test_speech_is_found_at_any_rate_level_and_offset_and_threads_stay():
    threads, pause = torch.get_num_threads(), np.zeros(2 * RATE)
    torch.set_num_threads(2)
    examination._detector.cache_clear()
    sound = np.concatenate([pause, SAID, pause])
    found = find_speech(recorded(sound).samples, RATE)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(threads)
    begin, end = found[0]
    assert 1.9 < begin < 2.5 < end
    assert found[-1][1] < 2.5 + len(SAID) / RATE
    for changed in (sound / 100, sound + 6000):
        other = find_speech(recorded(changed).samples, RATE)
        assert np.ravel(other) == pytest.approx(np.ravel(found), abs=0.2)
    other = find_speech(said(0, 0, 22_050), 22_050)
    assert other[0][0] == pytest.approx(begin - 2, abs=0.1)


def test_speech_is_found_alike_in_blocks(monkeypatch):
    sound = np.concatenate([said(0, 0), said(1, 0)])
    whole = find_speech(sound, RATE)
    monkeypatch.setattr(examination, "SECONDS_AT_ONCE", 4)  # 125 windows
    assert find_speech(sound, RATE) == whole


@pytest.mark.parametrize("samples", [noise(), 9000 * tone(2), np.zeros(RATE)])
def test_no_speech_is_found_where_there_is_none(samples):
    assert find_speech(recorded(samples).samples, RATE) == []


def test_speech_in_real_recordings(shared):
    files = (shared / "data" / "speechocean762" / "test").glob("*/*.opus")
    for path in sorted(files)[::200]:
        samples, rate = soundfile.read(path, dtype="int16")
        assert examine(Recording(samples, rate), rate) == []
        seconds = sum(end - begin for begin, end in find_speech(samples, rate))
        assert 0.2 * len(samples) / rate < seconds < len(samples) / rate


def test_speech_is_joined_by_hand(monkeypatch):
    monkeypatch.setattr(examination, "MARGIN_SECONDS", 1.0)
    ramp = np.arange(-50, 50, dtype=np.int16)  # its values say where they were

    def kept(*stretches, seconds=0.0) -> list[int]:
        joined = join_speech(ramp, 1, stretches, seconds)
        return (joined - joined[0]).tolist()

    assert kept((10, 12), (20, 21)) == [0, 1, 2, 3, 10, 11, 12]  # from 9 and 19
    assert kept((10, 12), (13, 14)) == [*range(6)]  # margins that meet
    assert kept((0, 1), (99, 100)) == [0, 1, 98, 99]
    assert kept((50, 51), seconds=9) == [*range(9)]  # the margin has grown to 4
    assert kept((50, 51), seconds=200) == [*range(100)]  # there are no more
    assert kept() == [*range(100)]
    assert join_speech(ramp + 900, 1, [(10, 12)]).tolist() == [-1, 0, 1, 2]
