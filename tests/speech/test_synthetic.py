"""The embedded corpus: what it promises, and its voices measured in their sound."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from scipy.linalg import solve_toeplitz

from conftest import RATE
from parameters import SyntheticParameters
from speech.synthetic import (
    VOWEL_ROWS,
    SyntheticUtterance,
    draw_voice,
    synthetic_utterances,
)
from transforms import slaney_filterbank
from verification.metrics import equal_error_rate

SEED = 1


def utterances(num_speakers: int, num_each: int) -> list[SyntheticUtterance]:
    sizes = {"num_speakers": num_speakers, "utterances_per_speaker": num_each}
    parameters = SyntheticParameters(**sizes, min_seconds=2.0, max_seconds=3.0)
    return synthetic_utterances(parameters, SEED)


@pytest.fixture(scope="module")
def corpus() -> list[tuple[SyntheticUtterance, np.ndarray]]:
    return [(utterance, utterance.render(RATE)) for utterance in utterances(24, 4)]


def powers(waveform: np.ndarray) -> np.ndarray:
    """Power spectra of windows of 25 ms, [windows, 257]."""
    windows = sliding_window_view(waveform, 400)[::160] * np.hanning(400)
    return np.abs(np.fft.rfft(windows, 512)) ** 2


def autocorrelation(x: np.ndarray) -> np.ndarray:
    """Autocorrelation over the last axis, 1 at lag 0."""
    correlation = np.fft.irfft(np.abs(np.fft.rfft(x, 2048)) ** 2)
    return correlation / correlation[..., :1]


def resonances(window: np.ndarray) -> np.ndarray:
    """Resonances found by linear prediction from one window, in Hz, rising."""
    order = 14
    lags = autocorrelation(window[1:] - 0.97 * window[:-1])[: order + 1]
    predictor = solve_toeplitz(lags[:-1] + 1e-9 * np.eye(order)[0], lags[1:])
    roots = np.roots(np.append(1, -predictor))
    roots = roots[(roots.imag > 0) & (np.abs(roots) > 0.85)]
    return np.sort(np.angle(roots)) * RATE / (2 * np.pi)


@pytest.fixture(scope="module")
def voiced(corpus) -> list[tuple[np.ndarray, np.ndarray]]:
    """Strongly periodic windows of 40 ms of every speaker; the pitch of each in Hz."""
    frames, window, lags = [], np.hanning(640), slice(RATE // 400, RATE // 60)
    for speaker in range(24):
        speech = np.concatenate([x for u, x in corpus if u.speaker == speaker])
        windows = sliding_window_view(speech, 640)[::160] * window
        windows = windows[windows.std(1) > 0.3 * windows.std()]
        correlation = autocorrelation(windows)[:, lags] / autocorrelation(window)[lags]
        is_voiced = correlation.max(1) > 0.8
        pitches = RATE / (lags.start + correlation.argmax(1))
        frames.append((windows[is_voiced], pitches[is_voiced]))
    return frames


def test_sound_belongs_to_the_fields_and_not_to_the_size_of_the_corpus(corpus):
    same = {utterance.id: utterance for utterance in utterances(30, 5)}
    for utterance, waveform in corpus[::20]:
        assert same[utterance.id] == utterance
        np.testing.assert_array_equal(same[utterance.id].render(RATE), waveform)


def test_names_durations_and_levels(corpus):
    utterances = [utterance for utterance, _ in corpus]
    assert len({utterance.id for utterance in utterances}) == 24 * 4
    assert len({repr(utterance) for utterance in utterances}) == 24 * 4
    assert utterances[5].id == "speaker-0001-001"
    assert utterances[5].speaker_id == "speaker-0001"
    assert [sum(u.gender == gender for u in utterances) for gender in "fm"] == [48, 48]
    seconds = np.array([utterance.seconds for utterance in utterances])
    assert 2.0 <= seconds.min() < 2.05
    assert 2.95 < seconds.max() <= 3.0
    for _, waveform in corpus:  # the level of speech, nothing clipped
        samples = waveform / 32768
        assert -40 < 20 * np.log10(samples.std()) < -15
        assert np.abs(samples).max() < 0.96
        assert abs(samples.mean()) < 0.01


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100])
def test_length_is_the_duration_at_any_rate(rate):
    waveform = SyntheticUtterance(3, 0, seconds=1.2345, seed=SEED).render(rate)
    assert waveform.dtype == np.int16
    assert len(waveform) == round(1.2345 * rate)


def test_resampled_speech_is_the_same_speech():
    utterance = SyntheticUtterance(speaker=3, index=0, seconds=2.0, seed=SEED)
    once, twice = utterance.render(16000), utterance.render(32000)
    np.testing.assert_allclose(twice[::2], once, atol=0.001 * np.abs(once).max())


def test_another_seed_speaker_or_index_is_another_sound():
    utterance = SyntheticUtterance(speaker=0, index=0, seconds=2.0, seed=SEED)
    waveform = utterance.render(RATE).astype(float)
    for change in ({"speaker": 2}, {"index": 1}, {"seed": SEED + 1}):
        other = replace(utterance, **change).render(RATE)
        assert abs(np.corrcoef(waveform, other)[0, 1]) < 0.3


def test_pitch_is_that_of_the_voice_and_higher_in_female_speakers(voiced):
    medians = np.array([np.median(pitches) for _, pitches in voiced])
    expected = np.array([draw_voice(SEED, k).pitch for k in range(24)])
    assert np.abs(np.log2(medians / expected)).max() < 4 / 12
    assert 1.4 < medians[::2].mean() / medians[1::2].mean() < 2.2


def test_linear_prediction_finds_the_formants_of_the_vocal_tract(voiced):
    expected, measured = [], []
    for speaker, (windows, _) in enumerate(voiced):
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
    for windows, _ in voiced:
        power = (np.abs(np.fft.rfft(windows)) ** 2).mean(0)
        low, high = np.split(power, [len(power) // 2])
        assert low.mean() > 30 * high.mean()


def test_fricatives_and_bursts_live_above_4_khz(corpus):
    num_loud = dict.fromkeys(range(24), 0)
    for utterance, waveform in corpus:
        low, high = np.split(powers(waveform), [128], axis=1)
        num_loud[utterance.speaker] += (high.sum(1) > low.sum(1)).sum()
    assert min(num_loud.values()) >= 5  # windows


def test_an_average_spectrum_does_not_tell_the_speakers_apart(corpus):
    speakers = np.array([utterance.speaker for utterance, _ in corpus])
    bands = slaney_filterbank(RATE, 512, 80).numpy().T
    log_mels = (np.log(powers(x / 32768) @ bands + 2.0**-24) for _, x in corpus)
    vectors = np.array([log_mel.mean(0) for log_mel in log_mels])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    first, second = np.triu_indices(len(vectors), 1)
    scores = (vectors @ vectors.T)[first, second]
    assert 0.15 < equal_error_rate(scores, speakers[first] == speakers[second]) < 0.45
