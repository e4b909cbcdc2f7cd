"""Where recordings hold speech."""

import numpy as np
import pytest
import soundfile
import torch

from conftest import RATE, said
from recognition import sounds
from recognition.sounds import speech_stretches


def test_speech_is_found_at_any_rate_and_threads_stay():
    threads, pause = torch.get_num_threads(), np.zeros(2 * RATE, np.int16)
    torch.set_num_threads(2)
    sounds._detector.cache_clear()
    found = speech_stretches(np.concatenate([pause, said(0, 0), pause]), RATE)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(threads)
    begin, end = found[0]
    assert 1.9 < begin < 2.5 < end
    assert found[-1][1] < 2.5 + len(said(0, 0)) / RATE
    other = speech_stretches(said(0, 0, 22_050), 22_050)
    assert other[0][0] == pytest.approx(begin - 2, abs=0.1)


def test_speech_in_real_recordings(shared):
    files = (shared / "data" / "speechocean762" / "test").glob("*/*.opus")
    for path in sorted(files)[::200]:
        samples, rate = soundfile.read(path, dtype="int16")
        seconds = sum(end - begin for begin, end in speech_stretches(samples, rate))
        assert 0.2 * len(samples) / rate < seconds < len(samples) / rate
