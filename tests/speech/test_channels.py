"""Channels of several people, channels that cancel, and channels without sound."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from conftest import RATE, noise, write
from speech import audio
from speech.audio import AudioError, Segment, load_recording

NUM_SAMPLES = 2 * RATE


def voice(seed: int) -> np.ndarray:
    """Noise that comes and goes like syllables, float [N]."""
    random = np.random.default_rng(seed)
    loudness = np.repeat(random.choice([0.0, 0.1, 1.0], 20), NUM_SAMPLES // 20)
    return 0.1 * loudness * random.standard_normal(NUM_SAMPLES)


ONE, OTHER = voice(1), voice(2)
NOISE = np.random.default_rng(3).standard_normal((2, NUM_SAMPLES))
SILENCE = np.zeros(NUM_SAMPLES)


@pytest.mark.parametrize("samples_per_read", [2**20, 3000])
@pytest.mark.parametrize(
    ("channels", "taken", "said"),
    [
        ((ONE, OTHER), None, "channels differ, 0 and 1"),
        ((ONE + OTHER / 4, OTHER + ONE / 4), None, "channels differ, 0 and 1"),
        ((ONE, SILENCE, OTHER / 20, ONE), None, "channels differ, 0 and 2"),
        ((ONE, -0.9 * ONE), 0, "cancel"),
        ((*(ONE, -ONE) + 0.01 * NOISE, SILENCE), 0, "cancel"),
        ((SILENCE, ONE), 1, "only channel 1"),
        ((ONE, SILENCE + 0.1, SILENCE), 0, "only channel 0"),
        ((1e-4 * NOISE[0], ONE), 1, "only channel 1"),
        ((ONE, 0.3 * ONE), None, None),
        ((ONE, np.roll(ONE, 160)), None, None),  # the second microphone, 3.4 m away
        ((ONE, -0.3 * ONE + 0.2), None, None),  # an offset is no sound
        ((*(ONE, ONE) + 0.1 * NOISE,), None, None),
        ((0.1 * NOISE[0], 0.1 * NOISE[0]), None, None),  # levels that never change
        ((SILENCE, SILENCE), None, None),
    ],
)
def test_what_channels_hold(
    tmp_path, monkeypatch, samples_per_read, channels, taken, said
):
    monkeypatch.setattr(audio, "SAMPLES_PER_READ", samples_per_read)
    waveforms = np.stack(channels, axis=1)
    recording = load_recording(
        write(tmp_path / "a.wav", waveforms, subtype="FLOAT"), RATE
    )
    expected = waveforms.mean(1) if taken is None else waveforms[:, taken]
    assert np.abs(recording.samples / 32768 - expected).max() < 1 / 32768
    assert recording.warning is None if said is None else said in recording.warning


def test_a_channel_is_taken_without_a_word_where_it_is_named(tmp_path):
    path = write(tmp_path / "a.wav", np.stack([noise(), noise()[::-1]], axis=1))
    recording = load_recording(Segment(path, channel=1), RATE)
    assert recording.warning is None
    assert_array_equal(recording.samples, noise()[::-1])
    with pytest.raises(AudioError, match=r"from 0 to 1 \(2 .* got 2$"):
        load_recording(Segment(path, channel=2), RATE)
