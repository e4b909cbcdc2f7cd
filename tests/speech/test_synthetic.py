"""The embedded corpus: what it promises, and its voices measured in their sound."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from sklearn.metrics import roc_curve

from parameters import SyntheticParameters
from speech.synthetic import (
    VOWEL_ROWS,
    SyntheticUtterance,
    draw_voice,
    synthetic_utterances,
)
from transforms import slaney_filterbank

RATE = 16000
SEED = 1


def parameters(**changes) -> SyntheticParameters:
    values = {
        "num_speakers": 24,
        "utterances_per_speaker": 4,
        "min_seconds": 2.0,
        "max_seconds": 3.0,
    }
    return SyntheticParameters(**(values | changes))


@pytest.fixture(scope="module")
def corpus() -> list[tuple[SyntheticUtterance, np.ndarray]]:
    utterances = synthetic_utterances(parameters(), SEED)
    return [(utterance, utterance.render(RATE)) for utterance in utterances]


def voiced_frames(waveform: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Strongly periodic windows of 40 ms, and the pitch of each in Hz."""
    window = np.hanning(640)
    windows = sliding_window_view(waveform, 640)[::160] * window
    loud = windows.std(1) > 0.3 * windows.std()
    windows = windows[loud]
    shortest, longest = RATE // 400, RATE // 60
    correlation = autocorrelation(windows)[:, shortest:longest]
    correlation /= autocorrelation(window)[shortest:longest]
    voiced = correlation.max(1) > 0.8
    return windows[voiced], RATE / (shortest + correlation.argmax(1)[voiced])


def autocorrelation(x: np.ndarray) -> np.ndarray:
    """Autocorrelation over the last axis, 1 at lag 0."""
    correlation = np.fft.irfft(np.abs(np.fft.rfft(x, 2048)) ** 2)
    return correlation / correlation[..., :1]


def resonances(window: np.ndarray) -> np.ndarray:
    """Resonances found by linear prediction from one window, in Hz, rising."""
    order = 14
    lags = autocorrelation(window[1:] - 0.97 * window[:-1])[: order + 1]
    toeplitz = lags[np.abs(np.subtract.outer(range(order), range(order)))]
    predictor = np.linalg.solve(toeplitz + 1e-9 * np.eye(order), lags[1:])
    roots = np.roots(np.append(1, -predictor))
    roots = roots[(roots.imag > 0) & (np.abs(roots) > 0.85)]
    return np.sort(np.angle(roots)) * RATE / (2 * np.pi)


def mean_log_mel(waveform: np.ndarray) -> np.ndarray:
    """Mean over time of log(power + 2^-24) in 80 mel bands."""
    windows = sliding_window_view(waveform, 400)[::160] * np.hanning(400)
    power = np.abs(np.fft.rfft(windows, 512)) ** 2
    bands = slaney_filterbank(RATE, 512, 80).numpy()
    return np.log(power @ bands.T + 2.0**-24).mean(0)


@pytest.fixture(scope="module")
def voiced(corpus) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Voiced windows of every speaker, and the pitch of each in Hz."""
    frames = {}
    for utterance, waveform in corpus:
        frames.setdefault(utterance.speaker, []).append(voiced_frames(waveform))
    return {
        speaker: tuple(map(np.concatenate, zip(*found, strict=True)))
        for speaker, found in frames.items()
    }


def test_sound_belongs_to_the_fields_and_not_to_the_size_of_the_corpus(corpus):
    larger = synthetic_utterances(
        parameters(num_speakers=30, utterances_per_speaker=5), SEED
    )
    same = {utterance.id: utterance for utterance in larger}
    for utterance, waveform in corpus[::20]:
        assert same[utterance.id] == utterance
        np.testing.assert_array_equal(same[utterance.id].render(RATE), waveform)


def test_names_are_unique_and_durations_fill_their_range(corpus):
    utterances = [utterance for utterance, _ in corpus]
    assert len({utterance.id for utterance in utterances}) == 24 * 4
    assert len({repr(utterance) for utterance in utterances}) == 24 * 4
    assert utterances[5].id == "speaker-0001-001"
    assert utterances[5].speaker_id == "speaker-0001"
    assert [sum(u.gender == gender for u in utterances) for gender in "fm"] == [48, 48]
    seconds = np.array([utterance.seconds for utterance in utterances])
    assert 2.0 <= seconds.min() < 2.05
    assert 2.95 < seconds.max() <= 3.0


@pytest.mark.parametrize("sample_rate", [8000, 16000, 22050, 44100])
def test_length_is_the_duration_at_any_rate(sample_rate):
    utterance = SyntheticUtterance(speaker=3, index=0, seconds=1.2345, seed=SEED)
    waveform = utterance.render(sample_rate)
    assert waveform.dtype == np.int16
    assert len(waveform) == round(1.2345 * sample_rate)


def test_resampled_speech_is_the_same_speech():
    utterance = SyntheticUtterance(speaker=3, index=0, seconds=2.0, seed=SEED)
    once, twice = utterance.render(16000), utterance.render(32000)
    np.testing.assert_allclose(twice[::2], once, atol=0.001 * np.abs(once).max())


def test_level_is_that_of_speech_without_clipping(corpus):
    for _, waveform in corpus:
        samples = waveform / 32768
        assert -40 < 20 * np.log10(samples.std()) < -15
        assert np.abs(samples).max() < 0.96
        assert abs(samples.mean()) < 0.01


def test_another_seed_speaker_or_index_is_another_sound():
    utterance = SyntheticUtterance(speaker=0, index=0, seconds=2.0, seed=SEED)
    waveform = utterance.render(RATE).astype(float)
    for change in ({"speaker": 2}, {"index": 1}, {"seed": SEED + 1}):
        other = replace(utterance, **change).render(RATE)
        assert abs(np.corrcoef(waveform, other)[0, 1]) < 0.3


def test_pitch_is_that_of_the_voice_and_higher_in_female_speakers(voiced):
    medians = np.array([np.median(pitches) for _, pitches in voiced.values()])
    expected = np.array([draw_voice(SEED, speaker).pitch for speaker in voiced])
    assert np.abs(np.log2(medians / expected)).max() < 4 / 12
    assert 1.4 < medians[::2].mean() / medians[1::2].mean() < 2.2


def test_linear_prediction_finds_the_formants_of_the_vocal_tract(voiced):
    expected, measured = [], []
    for speaker, (windows, _) in voiced.items():
        found = [hz[2:4] for hz in map(resonances, windows[::4]) if len(hz) >= 5]
        measured.append(np.log(np.median(found, axis=0)).mean())
        formants = draw_voice(SEED, speaker).formants[np.concatenate(VOWEL_ROWS)]
        expected.append(np.log(formants[:, 2:4]).mean())
    assert np.corrcoef(expected, measured)[0, 1] > 0.8
    assert np.abs(np.subtract(expected, measured)).mean() < 0.06


def test_vocal_tracts_are_shorter_in_female_speakers():
    scales = [np.log(draw_voice(SEED, k).formants).mean() for k in range(200)]
    assert 1.1 < np.exp(np.mean(scales[::2]) - np.mean(scales[1::2])) < 1.22


def test_vowels_fall_with_frequency(voiced):
    for windows, _ in voiced.values():
        power = (np.abs(np.fft.rfft(windows)) ** 2).mean(0)
        low, high = np.split(power, [len(power) // 2])
        assert low.mean() > 30 * high.mean()


def test_fricatives_and_bursts_live_above_4_khz(corpus):
    num_loud = dict.fromkeys(range(24), 0)
    for utterance, waveform in corpus:
        windows = sliding_window_view(waveform, 400)[::160] * np.hanning(400)
        power = np.abs(np.fft.rfft(windows)) ** 2
        low, high = np.split(power, [100], axis=1)
        num_loud[utterance.speaker] += (high.sum(1) > low.sum(1)).sum()
    assert min(num_loud.values()) >= 5  # windows


def test_an_average_spectrum_does_not_tell_the_speakers_apart(corpus):
    speakers = np.array([utterance.speaker for utterance, _ in corpus])
    vectors = np.array([mean_log_mel(waveform / 32768) for _, waveform in corpus])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    first, second = np.triu_indices(len(vectors), 1)
    false_alarms, hits, _ = roc_curve(
        speakers[first] == speakers[second], (vectors @ vectors.T)[first, second]
    )
    equal = np.abs(false_alarms - (1 - hits)).argmin()
    assert 0.15 < false_alarms[equal] < 0.45
